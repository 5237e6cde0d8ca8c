"""The options of `gibench leaderboard`; this module is read for the help and imports nothing heavy."""

import argparse
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def add_options(board: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Give the command its five commands.

    Args:
        board: the parser of `gibench leaderboard`.
        common: options that every command has.
    """
    commands = board.add_subparsers(dest="board_command", required=True, metavar="COMMAND")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="the folder of results")
    parents = [common, where]

    add = commands.add_parser("add", parents=parents, help="enter the attacks of a finished run")
    add.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder; several: other victim seeds")
    add.add_argument("--by", required=True, metavar="NAME", help="who publishes it")
    for option in ("--scenario", "--attack"):
        add.add_argument(
            option,
            action="append",
            default=[],
            metavar="NAME[=PUBLISHED]",
            help="only this one, published under another name if one is given; may be repeated",
        )
    add.add_argument("--about", type=Path, metavar="FILE", help="what the page says of attacks that it does not know")
    add.add_argument("--supersede", metavar="REASON", help="publish a new revision of what is there, and why")

    check = commands.add_parser("validate", parents=parents, help="check entries; every problem is named")
    check.add_argument("files", type=Path, nargs="*", metavar="FILE", help="entries; none: all results")
    check.add_argument("--print-schema", action="store_true", help="print the JSON Schema of an entry and stop")

    verify = commands.add_parser(
        "verify",
        parents=[common],
        help="run a sample of an entry again, from the record alone",
        epilog="Options that begin with --data or --client say where data and weights lie here, for example "
        "--data.path flowers17.npz.",
    )
    verify.add_argument("file", type=Path, metavar="FILE", help="an entry")
    verify.add_argument("--images", type=int, default=8, metavar="N", help="at least so many, in whole batches (8)")
    verify.add_argument("--groups", action="store_true", help="run the whole groups of the sample: slower, to the bit")
    verify.add_argument("--rescore", action="store_true", help="only score the stored pictures again")
    verify.add_argument("--by", metavar="NAME", help="who verifies; the finding is then written beside the entry")
    verify.add_argument("--trust", action="store_true", help="build classes from elsewhere than gibench, too")
    verify.add_argument("--accelerator", default="auto", help="auto (default), cpu, gpu or mps")

    build = commands.add_parser("build", parents=parents, help="make the page")
    build.add_argument("--out", type=Path, default=Path("leaderboard-page"), metavar="DIR", help="where it goes")
    build.add_argument("--readme", type=Path, metavar="FILE", help="fill the marked block of this file, too")

    serve = commands.add_parser("serve", parents=parents, help="make the page and show it on this machine")
    serve.add_argument("--out", type=Path, default=Path("leaderboard-page"), metavar="DIR", help="where it goes")
    serve.add_argument("--port", type=int, default=8000, metavar="N", help="of the local server (8000)")
