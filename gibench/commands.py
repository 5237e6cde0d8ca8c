"""The commands behind the command line; this module may import everything."""

import argparse
import importlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from rich.console import Console

from gibench import diagnostics
from gibench.errors import ConfigurationError
from gibench.runs.compare import RecordedRun, print_comparison, unpaired, write_comparison
from gibench.runs.compare import compare as compare_runs
from gibench.runs.configuration import find, load
from gibench.runs.limits import build_limits, parse_limits
from gibench.runs.media import make_logger
from gibench.runs.parity import write_panel
from gibench.runs.plan import parse, plan
from gibench.runs.processes import Processes
from gibench.runs.run import Run
from gibench.runs.spaces import read_budget
from gibench.runs.suite import Cell, attack_name, cells, diagnosed, left_out, series, trainings
from gibench.runs.training import Training, parse_training, parse_trainings, train_first
from gibench.runs.tuning import Tuning

CONSOLE = Console(highlight=False)
if not CONSOLE.is_terminal:
    CONSOLE.width = 100  # what the tables need; a file or a pipe has no width of its own


def quickstart(options: argparse.Namespace) -> int:
    """Attack the embedded photographs."""
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Run a suite or a single configuration."""
    path = find(options.config)
    if options.limit is not None and options.limit < 1:
        raise ConfigurationError(f"--limit is {options.limit}; attack at least 1 update.")
    tree = load(path)
    name = str(tree.get("name", path.stem))
    found = cells(tree, name=name, size=options.size, file=path)
    if "cells" in tree and _replaces_attack(options.overrides):
        raise ConfigurationError("a suite names its attacks; edit it, or run a configuration of one attack.")
    if "cells" not in tree and _replaces_attack(options.overrides):
        found[0].attack = attack_name(parse(found[0], options.overrides).as_dict()["attack"])
    if options.print_config:
        resolved = {f"{cell.scenario} x {cell.attack}": parse(cell, options.overrides).as_dict() for cell in found}
        CONSOLE.print(yaml.safe_dump(resolved, sort_keys=False), soft_wrap=True, end="", markup=False)
        return 0
    parse_limits(found)
    first = parse_trainings(trainings(tree, name=name, size=options.size))
    out = options.out or Path("runs") / (f"{name}-{options.size}" if "sizes" in tree else name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # advice on workers and on its own internals
        processes = Processes(accelerator=options.accelerator, devices=options.devices, nodes=options.nodes)
        _train_first(first, found, options.overrides, processes)
        Run(
            name=name,
            size=options.size,
            command=options.line,
            series=series(tree, name=name, size=options.size),
            reference=tree.get("reference"),
            left_out=left_out(tree, name=name),
            diagnosed=diagnosed(tree, name=name, size=options.size),
            limits=build_limits(found),
            jobs=plan(found, options.overrides, options.limit),
            out=out,
            processes=processes,
            precision=options.precision,
            logger=make_logger(options.logger, name, out),
            download=options.command == "run",
            console=CONSOLE,
        )()
    return 0


def compare(options: argparse.Namespace) -> int:
    """Compare two runs and, where that is asked for, enter the result into the panel of rule R14."""
    reference, other = RecordedRun(options.reference), RecordedRun(options.other)
    comparisons = compare_runs(reference, other)
    print_comparison(comparisons, CONSOLE, unpaired(reference, other))
    if options.json:
        CONSOLE.print(f"json: {write_comparison(comparisons, options.json)}", soft_wrap=True, markup=False)
    for entry in write_panel(comparisons, reference, other, options.panel) if options.panel else ():
        CONSOLE.print(
            f"{entry.architecture}: {entry.precision} on {entry.device} is {entry.verdict} {entry.tolerance:g} dB",
            soft_wrap=True,
            markup=False,
        )
    return 0


def fit(options: argparse.Namespace) -> int:
    """Train a victim, or what else the configuration names."""
    path = find(options.config)
    training = parse_training(load(path), options.overrides, out=Path("runs") / path.stem)
    if options.print_config:
        CONSOLE.print(
            yaml.safe_dump(training.arguments.as_dict(), sort_keys=False), soft_wrap=True, end="", markup=False
        )
        return 0
    for file in training():
        CONSOLE.print(file, soft_wrap=True)
    return 0


def tune(options: argparse.Namespace) -> int:
    """Choose the settings of a suite's attacks on the tune split."""
    path = find(options.config)
    tree = load(path)
    name = str(tree.get("name", path.stem))
    found = cells(tree, name=name, size=options.size)
    budget = read_budget(tree, name=name, size=options.size)
    first = parse_trainings(trainings(tree, name=name, size=options.size))
    out = options.out or Path("runs") / f"tune-{name}-{options.size}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        processes = Processes(accelerator=options.accelerator, devices=1, nodes=1)
        _train_first(first, found, (), processes)
        Tuning(
            name=name,
            size=options.size,
            command=options.line,
            cells=found,
            budget=budget,
            out=out,
            device=processes.device,
            console=CONSOLE,
        )(options.write or out / f"{name}-{options.size}.yaml")
    return 0


def leaderboard(options: argparse.Namespace) -> int:
    """Hand over to the room that has the records and the page; the core does not import it."""
    status: int = importlib.import_module("leaderboard.commands").main(options)
    return status


def doctor(options: argparse.Namespace) -> int:
    """Look at the machine and, where one is given, at a model; or at what a configuration's updates discard."""
    if options.leak is not None:
        path = find(options.leak)
        tree = load(path)
        found = cells(tree, name=str(tree.get("name", path.stem)), size=options.size, file=path)
        jobs = plan(found, (), limit=None)
        diagnostics.print_leak(
            {job.scenario: (job.data, job.client) for job in jobs}, updates=options.updates, console=CONSOLE
        )
        return 0
    return diagnostics.doctor(options.model, image_size=options.image_size)


def _train_first(
    first: Mapping[str, Training], found: Sequence[Cell], overrides: Sequence[str], processes: Processes
) -> None:
    """Do the trainings of a suite, once every cell has been read: a mistake shows before anything is trained."""
    if first:
        for cell in found:
            parse(cell, overrides)
        train_first(first, processes, CONSOLE)


def _replaces_attack(overrides: list[str]) -> bool:
    return any(word == "--attack" or word.startswith("--attack=") for word in overrides)
