"""Trainings of victims: `gibench fit`, and what a suite names under `victims` and `gibench run` does first."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console

from gibench.errors import ConfigurationError
from gibench.runs.configuration import Tree
from gibench.runs.plan import instantiate
from gibench.runs.processes import Processes
from gibench.victims.training import fit_victim

FOLDER = Path("runs") / "victims"


def parse_training(tree: Tree, overrides: Sequence[str] = (), *, out: Path) -> Namespace:
    """Check the configuration of a training, with command-line options laid over it.

    Args:
        tree: the arguments of `fit_victim`.
        overrides: options such as --steps 300.
        out: the folder for the weights, unless the configuration names one.

    Raises:
        ConfigurationError: one line that names the key.
    """
    try:
        checked = _parser().parse_object({"out": str(out), **tree})
        checked = _parser().parse_args(list(overrides), namespace=checked)
    except ArgumentError as error:
        raise ConfigurationError(" ".join(str(error).split())) from error
    return checked


def train(training: Namespace) -> list[Path]:
    """Do a training that `parse_training` has checked, and return its checkpoints."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        return fit_victim(**instantiate(_parser(), training))


def parse_victims(victims: Mapping[str, Tree]) -> dict[str, Namespace]:
    """Check the trainings of a suite: name -> training, which goes into `runs/victims/NAME`.

    Raises:
        ConfigurationError: one line that names the victim and the key.
    """
    trainings = {}
    for name, tree in victims.items():
        try:
            trainings[name] = parse_training(tree, out=FOLDER / name)
        except ConfigurationError as error:
            raise ConfigurationError(f"victims: {name}: {error}") from error
    return trainings


def train_victims(trainings: Mapping[str, Namespace], processes: Processes, console: Console) -> None:
    """Train the victims of a suite that are not there yet, in the first process, while the others wait."""
    if processes.is_first:
        for name, training in trainings.items():
            console.print(
                f"victim {name}: {training.steps:,} steps, kept in {training.out}", soft_wrap=True, markup=False
            )
            train(training)
    processes.wait()


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(fit_victim)
    return parser
