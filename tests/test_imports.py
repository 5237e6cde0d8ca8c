"""The import fence: rooms are imported in one direction, and the command line starts without the heavy packages."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
OUTER = {"inverters", "generators", "leaderboard", "configs"}
FORBIDDEN_TO_ATTACKS = {"data", "metrics", "clients", "inversion"}

# From the ground up; a room may import its own layer and those below. What is not listed stands on top, with the CLI.
LAYERS = (
    {"types", "errors", "seeding", "hashing", "needs", "progress", "storage", "precision"},
    {"likelihoods", "priors", "labels", "defenses", "victims", "data", "metrics", "matching", "records"},
    {"engine"},
    {"clients", "search", "diagnostics"},
    {"attacks"},
    {"inversion", "scoring"},
)
LAYER = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
CORE = sorted((REPOSITORY / "gibench").rglob("*.py"))


def room(module: str) -> str:
    """`gibench.attacks.dlg` and `gibench.attacks` -> `attacks`."""
    return module.removeprefix("gibench.").split(".")[0]


def imported(file: Path) -> Iterator[str]:
    """Every module that `file` imports, at the top or inside functions; `from gibench import x` counts as gibench.x."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: write `from gibench...`, not a relative import"
            assert node.module
            yield from (f"gibench.{alias.name}" for alias in node.names) if node.module == "gibench" else [node.module]


@pytest.mark.parametrize("file", CORE, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_rooms_import_downwards(file: Path) -> None:
    own = room(".".join(file.relative_to(REPOSITORY).with_suffix("").parts))
    for module in imported(file):
        assert module.split(".")[0] not in OUTER, f"the core imports {module}; name it by class path in a config"
        if module.startswith("gibench."):
            other = room(module)
            assert LAYER.get(other, len(LAYERS)) <= LAYER.get(own, len(LAYERS)), f"{own} stands below {other}"
            assert own != "attacks" or other not in FORBIDDEN_TO_ATTACKS, f"an attack imports {other}"


def test_the_layers_name_rooms_that_exist() -> None:
    names = {room(".".join(file.relative_to(REPOSITORY).with_suffix("").parts)) for file in CORE}
    assert set(LAYER) <= names


def test_attacks_are_loaded_without_what_they_must_not_see() -> None:
    """Not even through the rooms between: the private data, the clients that hold it, and the scores."""
    script = (
        "import sys, gibench.attacks; print('LOADED:', *sorted(m for m in sys.modules if m.startswith('gibench.')))"
    )
    command = [sys.executable, "-c", script]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    loaded = {room(module) for module in finished.stdout.split("LOADED:")[1].split()}
    assert "attacks" in loaded
    assert not loaded & FORBIDDEN_TO_ATTACKS


HEAVY = ("torch", "lightning", "torchvision", "torchmetrics", "wandb")
START = f"""
import runpy, sys
sys.argv = ["gibench", *sys.argv[1:]]
try:
    runpy.run_module("gibench.cli", run_name="__main__" if sys.argv[1:] else "gibench.cli")
finally:
    print("HEAVY:", *sorted(set(sys.modules) & {set(HEAVY)!r}))
"""


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["import gibench.cli", "gibench --help"])
def test_the_command_line_starts_without_heavy_imports(arguments: list[str]) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", START, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.rstrip().endswith("HEAVY:"), finished.stdout


def test_help_names_the_subcommands() -> None:
    command = [sys.executable, "-m", "gibench.cli", "--help"]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for subcommand in ("quickstart", "run", "fit", "doctor"):
        assert subcommand in finished.stdout
