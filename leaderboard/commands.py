"""The commands of `gibench leaderboard`."""

import argparse
import functools
import http.server
import warnings
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from gibench.errors import ConfigurationError
from leaderboard import site
from leaderboard.add import Request, add, read_about
from leaderboard.exports import fill_readme
from leaderboard.store import validate
from leaderboard.verify import note, rescore, verify

CONSOLE = Console(highlight=False, soft_wrap=True)


def main(options: argparse.Namespace) -> int:
    """Run one of the commands and return the exit status."""
    if options.overrides and options.board_command != "verify":
        raise ConfigurationError(f"leaderboard {options.board_command} has no option {options.overrides[0]!r}.")
    command: Callable[[argparse.Namespace], int] = _COMMANDS[options.board_command]
    return command(options)


def _add(options: argparse.Namespace) -> int:
    request = Request(
        runs=tuple(options.runs),
        by=options.by,
        scenarios=_names(options.scenario, "--scenario"),
        attacks=_names(options.attack, "--attack"),
        about=read_about(options.about) if options.about else None,
        reason=options.supersede,
    )
    new, same = add(request, options.results)
    for path in new:
        _say(f"new: {path}")
    for path in same:
        _say(f"there already: {path}")
    return 0


def _names(words: Sequence[str], option: str) -> dict[str, str]:
    """NAME or NAME=PUBLISHED, as name -> the one under which it is published."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, published = word.partition("=")
        if not name or (equals and not published) or name in found:
            raise ConfigurationError(f"{option} {word}: pass NAME or NAME=PUBLISHED, each name once.")
        found[name] = published or name
    return found


def _validate(options: argparse.Namespace) -> int:
    if options.print_schema:
        _say(site.schema_text().rstrip())
        return 0
    if missing := [file for file in options.files if not file.is_file()]:
        raise ConfigurationError(f"there is no file {missing[0]}.")
    if not options.files and not options.results.is_dir():
        raise ConfigurationError(f"there is no folder {options.results}; pass --results DIR.")
    stored, problems = validate(options.results, options.files)
    for problem in problems:
        _say(str(problem))
    _say(f"{len(stored)} entries read, {len(problems)} problems.")
    return int(bool(problems))


def _verify(options: argparse.Namespace) -> int:
    if options.images < 1:
        raise ConfigurationError(f"--images is {options.images}; run at least 1 again.")
    by = options.by or "nobody"
    if options.rescore:
        found = rescore(options.file, by=by)
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")  # advice on workers and on its own internals
            compared, found = verify(
                options.file,
                images=options.images,
                by=by,
                overrides=options.overrides,
                trust=options.trust,
                device=options.accelerator,
                groups=options.groups,
            )
        for each in compared:
            status = "" if each.status == each.image.status else f", {each.image.status} became {each.status}"
            told = f"{each.image.psnr:.2f} dB recorded, {each.psnr:.2f} dB now{status}"
            if found.measure == "labels, %":
                told = f"label {each.image.label_inferred} recorded, {each.label} now, {each.image.label} true"
            _say(f"{each.image.image_id}: {told}")
    unit = found.measure.split(", ")[1]
    _say(
        f"{found.outcome}: {found.agreed} of {found.images} images agree; mean difference "
        f"{found.mean_difference:+.3f} {unit}, largest {found.largest_difference:.3f} {unit}, "
        f"tolerance {found.tolerance:g} {unit}."
    )
    if options.by:
        _say(f"written: {note(options.file, [found])}")
    return int(found.outcome == "not reproduced")


def _build(options: argparse.Namespace) -> int:
    sections, count = site.build(options.results, options.out)
    rows = sum(len(scenario.rows) for section in sections for scenario in section.scenarios)
    _say(f"{rows} rows, {count} files: {options.out / 'index.html'}")
    if options.readme and fill_readme(options.readme, sections):
        _say(f"filled: {options.readme}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    site.build(options.results, options.out)
    handler = functools.partial(_Quiet, directory=str(options.out))
    with http.server.ThreadingHTTPServer(("127.0.0.1", options.port), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}/"
        _say(f"{address} shows {options.out}; Ctrl-C stops.")
        webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            _say("stopped.")
    return 0


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - the name that the interface has
        """Say nothing of single requests."""


def _say(line: str) -> None:
    CONSOLE.print(line, markup=False)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "add": _add,
    "validate": _validate,
    "verify": _verify,
    "build": _build,
    "serve": _serve,
}
