"""The command line: `gibench run`, `tune`, `compare`, `fit` and others. Heavy imports wait for a command."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gibench import __version__
from gibench.errors import GibenchError
from gibench.runs import supervisor

DESCRIPTION = "How much of the private images leaks from a federated-learning update?"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 1 after one line that says what went wrong and what to do."""
    # How to start the same again: as this process was started, or where a program called, from its words.
    command = [sys.executable, *sys.orig_argv[1:]]
    if arguments is not None:
        command = [sys.executable, "-m", "gibench.cli", *arguments]
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options, overrides = _parser().parse_known_args(arguments)
    if overrides and options.command not in ("run", "fit", "leaderboard"):
        _parser().error(f"{options.command} has no option {overrides[0]!r}")
    supervisor.obey()
    options.line = " ".join(["gibench", *arguments])
    options.overrides = overrides
    try:
        return _start(options, command)
    except GibenchError as error:
        if options.debug:
            raise
        supervisor.complain(f"gibench: {error}")
        return 1
    except OSError as error:
        if options.debug:
            raise
        supervisor.complain(f"gibench: {error}; what is recorded is kept, and the same command continues.")
        return 1
    except KeyboardInterrupt:
        supervisor.complain("gibench: interrupted; the same command continues where it stopped.")
        return 130


def _start(options: argparse.Namespace, command: Sequence[str]) -> int:
    """Do what the options say in this process, or supervise several that do."""
    runs = options.command in ("run", "quickstart") and not options.print_config
    if runs and supervisor.is_needed(options.accelerator, options.devices, options.nodes):
        return supervisor.supervise(command, devices=options.devices, nodes=options.nodes)
    from gibench import commands
    from gibench.allocator import keep_large_blocks

    keep_large_blocks()
    status: int = getattr(commands, options.command)(options)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong, where argparse prints its whole usage."""
        self.exit(2, f"gibench: {message}; see `{self.prog} --help`.\n")


def _parser() -> _Parser:
    parser = _Parser(prog="gibench", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"gibench {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    running = _Parser(add_help=False)
    running.add_argument("--out", type=Path, metavar="DIR", help="the run folder; an unfinished run in it is continued")
    running.add_argument("--accelerator", default="auto", help="auto (default), cpu, gpu or mps")
    running.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs, or processes on a CPU (1)")
    running.add_argument("--nodes", type=int, default=1, metavar="N", help="machines; start the command on each (1)")
    running.add_argument(
        "--precision",
        default="32-true",
        choices=("32-true", "64-true", "tf32", "bf16-mixed"),
        help="32-true (default); bf16-mixed computes the victim's passes, and nothing else, in bfloat16",
    )

    quick = commands.add_parser(
        "quickstart", parents=[common, running], help="attack embedded photographs, two minutes"
    )
    quick.set_defaults(config="quickstart", size="small", limit=None, print_config=False, logger="csv")

    run = commands.add_parser(
        "run",
        parents=[common, running],
        help="run a suite, or one attack on one scenario",
        epilog="Other options lay single settings over the configuration: --attack.steps 300, --data.updates 10, "
        "--client.victim gibench.victims.mlp, --attack gibench.attacks.dlg.",
    )
    run.add_argument("config", metavar="CONFIG", help="a YAML file, or a shipped one such as suites/first.yaml")
    run.add_argument("--size", default="small", help="of a suite: small (two CPU cores) or full (a GPU)")
    run.add_argument("--limit", type=int, metavar="N", help="attack at most N updates in each cell")
    run.add_argument("--logger", default="csv", help="csv (default), wandb, or wandb-offline")
    run.add_argument("--print-config", action="store_true", help="print what would be run, resolved, and stop")

    compare = commands.add_parser(
        "compare",
        parents=[common],
        help="compare two runs image by image",
        description="Print the paired differences of two runs of the same attacks on the same images: two precisions, "
        "back ends, versions or machines.",
    )
    compare.add_argument("reference", type=Path, metavar="REFERENCE", help="a run folder")
    compare.add_argument("other", type=Path, metavar="OTHER", help="the run folder that is held against it")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the comparison there, too")
    compare.add_argument("--panel", type=Path, metavar="FILE", help="enter it there, as in gibench/parity.json (R14)")

    fit = commands.add_parser(
        "fit",
        parents=[common],
        help="train a victim or an inverter, and keep its weights",
        epilog="Other options change the configuration: --steps 1000, --checkpoints [0,100,1000], --batch_size 128, "
        "--victim gibench.victims.mlp, --data gibench.data.Photographs, --out DIR (default runs/CONFIG). "
        "Attack a checkpoint with the victim gibench.victims.load_weights (see the README).",
    )
    fit.add_argument(
        "config", metavar="CONFIG", help="a YAML file, or a shipped one such as victims/lenet_cifar10.yaml"
    )
    fit.add_argument("--print-config", action="store_true", help="print what would be run, resolved, and stop")

    tune = commands.add_parser(
        "tune",
        parents=[common],
        help="choose the settings of a suite's attacks, on the tune split",
        description="Search the settings that a suite names under `tune`, each attack with the same number of trials "
        "on the same tune images; a tune that was stopped goes on with the same command.",
    )
    tune.add_argument("config", metavar="CONFIG", help="a suite: a YAML file, or the name of a shipped one")
    tune.add_argument("--size", default="small", help="of the suite: small (two CPU cores) or full (a GPU)")
    tune.add_argument("--out", type=Path, metavar="DIR", help="for the trials (runs/tune-NAME-SIZE)")
    tune.add_argument("--write", type=Path, metavar="FILE", help="for the chosen settings (DIR/NAME-SIZE.yaml)")
    tune.add_argument("--accelerator", default="auto", help="auto (default), cpu, gpu or mps")

    board = commands.add_parser("leaderboard", help="add, validate and verify results, and make the page of them")
    importlib.import_module("leaderboard.options").add_options(board, common)  # an outer room: by its path

    doctor = commands.add_parser(
        "doctor",
        parents=[common],
        help="what this machine has, whether a model can be attacked, and what an update discards",
        description="Print devices, versions, data sets and weights found, and try the second derivatives of a model; "
        "or, with --leak, what the updates of a configuration discard, before any attack.",
    )
    doctor.add_argument("--leak", metavar="CONFIG", help="a suite or a configuration: a YAML file, or a shipped name")
    doctor.add_argument("--size", default="small", help="of that suite (small)")
    doctor.add_argument("--updates", type=int, default=1, metavar="N", help="to look at, of each scenario of it (1)")
    doctor.add_argument("--model", metavar="PATH", help="dotted path, e.g. torchvision.models.resnet18")
    doctor.add_argument(
        "--image-size",
        type=int,
        default=64,
        metavar="PX",
        help="side of the images it is tried with (64)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
