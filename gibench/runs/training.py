"""Trainings: `gibench fit`, and those that a suite names, which `gibench run` does first."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console

from gibench.errors import ConfigurationError
from gibench.runs.configuration import Tree
from gibench.runs.plan import instantiate
from gibench.runs.processes import Processes
from gibench.victims.training import fit_victim


class Training(NamedTuple):
    """A training that was checked: the function that does it, and its arguments.

    The function returns the files that it wrote, or found there.
    """

    fit: Callable[..., list[Path]]
    parser: ArgumentParser
    arguments: Namespace

    def __call__(self) -> list[Path]:
        """Do it, and return its files."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            return self.fit(**instantiate(self.parser, self.arguments))


def parse_training(tree: Tree, overrides: Sequence[str] = (), *, out: Path) -> Training:
    """Check the configuration of a training, with command-line options laid over it.

    Args:
        tree: `class_path`, a function such as inverters.fit_inverter, and its arguments as `init_args`; or the
            arguments of `fit_victim` alone.
        overrides: options such as --steps 300.
        out: the folder for the weights, unless the configuration names one.

    Raises:
        ConfigurationError: one line that names the key.
    """
    fit, arguments = _function(tree)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(fit)
    try:
        checked = parser.parse_object({"out": str(out), **arguments})
        checked = parser.parse_args(list(overrides), namespace=checked)
    except ArgumentError as error:
        raise ConfigurationError(" ".join(str(error).split())) from error
    return Training(fit, parser, checked)


def parse_trainings(trees: Mapping[str, Tree]) -> dict[str, Training]:
    """Check the trainings of a suite: "ROOM/NAME" -> what goes into the folder of that name.

    Raises:
        ConfigurationError: one line that names the training and the key.
    """
    trainings = {}
    for name, tree in trees.items():
        try:
            trainings[name] = parse_training(tree, out=Path("runs") / name)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name.replace('/', ': ')}: {error}") from error
    return trainings


def train_first(trainings: Mapping[str, Training], processes: Processes, console: Console) -> None:
    """Do the trainings of a suite that are not done yet, in the first process, while the others wait."""
    if processes.is_first:
        for name, training in trainings.items():
            console.print(f"training {name}, kept in {training.arguments.out}", soft_wrap=True, markup=False)
            training()
    processes.wait()


def _function(tree: Tree) -> tuple[Callable[..., list[Path]], dict[str, Any]]:
    if "class_path" not in tree:
        return fit_victim, tree
    odd = tree.keys() - {"class_path", "init_args"}
    module, _, name = str(tree["class_path"]).rpartition(".")
    if odd or not module:
        raise ConfigurationError(
            f"a training has class_path, such as inverters.fit_inverter, and init_args; got {', '.join(sorted(tree))}."
        )
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"there is no training {tree['class_path']!r}: {error}.") from error
    return found, tree.get("init_args") or {}
