"""The README is run: its Python blocks and those on defenses, its commands against the command line's own help.

HTML comments directly above a block steer its test and stay invisible to the reader:

    <!-- needs: cifar10 -->              skip where CIFAR-10 is absent
    <!-- short: steps=4800 -> steps=2 --> replace text, so that the test is short; the text must be there
"""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from gibench.cli import main

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
DEFENSES = (REPOSITORY / "docs" / "defenses.md").read_text()
COMMENTS = r"(?P<comments>(?:<!--(?:(?!-->).)*-->\s*\n)*)"
BLOCK = re.compile(COMMENTS + r"^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
TEST_COMMAND = "pip install uv && uv run pytest"
MAIN_COMMAND = "pip install uv && uv run gibench quickstart"


class Block(NamedTuple):
    """One fenced block and the comments above it, as (key, value)."""

    language: str
    code: str
    comments: list[tuple[str, str]]


def blocks(text: str, *languages: str) -> list[Block]:
    """The fenced blocks of `text` in one of `languages`."""
    found = []
    for match in BLOCK.finditer(text):
        comments = re.findall(r"<!--\s*(\w+):\s*(.*?)\s*-->", match["comments"])
        if match["language"] in languages:
            found.append(Block(match["language"], match["code"], comments))
    return found


def shortened(block: Block) -> str:
    """The code of `block` after the replacements of its `short` comments."""
    code = block.code
    for key, value in block.comments:
        if key == "short":
            old, new = value.split(" -> ")
            assert old in code, f"the README's block does not hold {old!r}"
            code = code.replace(old, new)
    return code


def shell_lines() -> list[str]:
    """The command lines of the README's shell blocks, without prompts and comments."""
    code = "\n".join(block.code for block in blocks(README, "bash", "console", "sh", "shell"))
    lines = [line.removeprefix("$ ").split(" #")[0].strip() for line in code.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def gibench_commands() -> list[list[str]]:
    """The arguments of each `gibench ...` and `uv run gibench ...`."""
    calls = [call.strip() for line in shell_lines() for call in re.split(r"&&|\|\||[;|]", line)]
    found = [re.fullmatch(r"(?:uv run )?gibench (.+)", call) for call in calls]
    return [shlex.split(match[1]) for match in found if match]


def gibench_help(*subcommand: str) -> str:
    command = [sys.executable, "-m", "gibench.cli", *subcommand, "--help"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "block",
    blocks(README, "python") + blocks(DEFENSES, "python"),
    ids=lambda block: block.code.strip().splitlines()[-1][:40],
)
def test_python_blocks_run(
    block: Block, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in block.comments:
        if key == "needs":
            request.getfixturevalue(f"{value}_root")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(shortened(block))
    runpy.run_path("block.py")


@pytest.mark.parametrize("arguments", gibench_commands(), ids=shlex.join)
def test_commands_exist_with_their_options_and_files(arguments: list[str]) -> None:
    subcommand, *rest = arguments
    help_text = gibench_help(subcommand)
    for word in rest:
        option = word.split("=")[0]
        if option.startswith("--") and "." not in option:
            assert re.search(rf"{option}\b", help_text), f"gibench {subcommand} has no option {option}"
        if word.endswith((".yaml", ".yml")) and word != "mine.yaml":  # the block above it
            assert (REPOSITORY / word).is_file(), f"{word} is not in the repository"


@pytest.mark.parametrize("block", blocks(README, "yaml"), ids=lambda block: block.code.split(":")[0])
def test_configurations_are_complete(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every key is known and of its type: printing the resolved configuration checks all of them."""
    (tmp_path / "mine.yaml").write_text(block.code)
    monkeypatch.chdir(REPOSITORY)
    assert main(["run", str(tmp_path / "mine.yaml"), "--print-config"]) == 0, capsys.readouterr().err


def test_the_readme_gives_both_commands_and_ci_runs_the_tests_by_it() -> None:
    assert any(line.startswith(MAIN_COMMAND) for line in shell_lines())
    assert TEST_COMMAND in shell_lines()
    assert TEST_COMMAND in (REPOSITORY / ".ci" / "run").read_text().splitlines()


def test_pictures_and_links_lead_to_files() -> None:
    targets = re.findall(r"!?\[[^\]]*\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)\"", README)
    local = [one or other for one, other in targets if "://" not in (one or other)]
    assert local, "the README opens with a picture"
    for target in local:
        assert (REPOSITORY / target).is_file(), f"the README names {target}, which is not there"
