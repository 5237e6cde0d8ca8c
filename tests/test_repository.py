"""What every commit keeps: one version, pins that satisfy the bounds, no addresses and no paths of a machine."""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gibench.diagnostics.environment import COMPROMISED

REPOSITORY = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
VERSION: str = PROJECT["project"]["version"]
EXTRAS = [line for extra in PROJECT["project"]["optional-dependencies"].values() for line in extra]
DEPENDENCIES = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"] + EXTRAS
BOUNDS = [Requirement(line) for line in DEPENDENCIES]
PINS = [Requirement(line) for line in PROJECT["tool"]["uv"]["constraint-dependencies"]]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))

FORBIDDEN = {
    "a path of a machine": r"(?<![\w.:/*-])/(?:home|Users|root|work|opt|mnt|srv|workspace)/\w",
    "a package registry": r"(?:pypi|pythonhosted|anaconda|npmjs)\.(?:org|com)|download\.pytorch\.org/whl",
    "an address of a package file": r"https?://\S+\.(?:whl|tar\.gz|tgz)\b",
}


def committed() -> list[Path]:
    """The files that git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    return [REPOSITORY / name for name in names if name and (REPOSITORY / name).is_file()]


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Text files by their name in the repository."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("needs a git checkout.")
    found = {}
    for path in committed():
        content = path.read_bytes()
        if b"\0" not in content:
            found[str(path.relative_to(REPOSITORY))] = content.decode()
    return found


@pytest.mark.parametrize("what", FORBIDDEN)
def test_files_hold_no_addresses_and_paths_of_a_machine(texts: dict[str, str], what: str) -> None:
    found = {f"{name}: {match[0]}" for name, text in texts.items() for match in re.finditer(FORBIDDEN[what], text)}
    assert not found, what


def test_the_patterns_find_what_they_look_for() -> None:
    samples = ("see /ho@me/someone", "https://py@pi.org/simple", "https://example.org/torch-2.0.w@hl")
    for pattern, sample in zip(FORBIDDEN.values(), samples, strict=True):
        assert re.search(pattern, sample.replace("@", ""))


def test_there_is_no_lock_file_and_nothing_large(texts: dict[str, str]) -> None:
    assert not [name for name in texts if Path(name).name in ("uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock")]
    # The generators that ship may be a few megabytes.
    assert not [
        path for path in committed() if path.stat().st_size > (3 if path.suffix == ".safetensors" else 2) * 2**20
    ]


@pytest.mark.parametrize("pin", PINS, ids=str)
def test_pinned_versions_satisfy_the_bounds(pin: Requirement) -> None:
    (exact,) = pin.specifier
    assert exact.operator == "=="
    bounds = [bound for bound in BOUNDS if canonicalize_name(bound.name) == canonicalize_name(pin.name)]
    assert bounds
    assert all(exact.version in bound.specifier for bound in bounds)


def test_compromised_releases_are_out_of_bounds() -> None:
    for package, releases in COMPROMISED.items():
        (bound,) = [bound for bound in BOUNDS if bound.name == package]
        assert not [release for release in releases if release in bound.specifier]


def test_every_bound_gives_its_reason() -> None:
    lines = (REPOSITORY / "pyproject.toml").read_text().splitlines()
    for bound in DEPENDENCIES:
        found = [line for line in lines if f'"{bound}"' in line]
        assert found
        assert all(re.search(r'"[\],]+\s+# \w', line) for line in found), f"say why: {found[0].strip()}"


def test_the_version_is_the_same_everywhere() -> None:
    assert f"## [{VERSION}]" in (REPOSITORY / "CHANGELOG.md").read_text()
    assert str(yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"]) == VERSION


def test_contributing_names_files_that_exist() -> None:
    named = re.findall(r"`([\w.]+/[\w./]*)`", (REPOSITORY / "CONTRIBUTING.md").read_text())
    assert not [name for name in named if not (REPOSITORY / name).exists()]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.relative_to(REPOSITORY)))
def test_configs_are_yaml_mappings(config: Path) -> None:
    assert isinstance(yaml.safe_load(config.read_text()), dict)


def test_hooks_run_the_linters_of_ci() -> None:
    ci = (REPOSITORY / ".ci" / "run").read_text()
    (local,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local"
    for hook in local["hooks"]:
        assert hook["entry"].split(" --")[0] in ci


def test_every_table_has_a_head(texts: dict[str, str]) -> None:
    tables = [
        (name, table)
        for name, text in texts.items()
        if name.endswith(".md")
        for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    ]
    assert tables
    assert not [(name, table[:80]) for name, table in tables if not headed(table)]


def headed(table: str) -> bool:
    """Whether a rule of as many columns follows the first line."""
    head, rule, *_ = [*table.splitlines(), ""]
    return bool(re.fullmatch(r"\|(:?-+:?\|)+", rule)) and rule.count("|") == len(re.findall(r"(?<!\\)\|", head))
