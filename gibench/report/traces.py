"""Traces: how an attack gets where it ends, from the scored iterates of a run, and what a report shows of it."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from gibench.errors import RecordError
from gibench.records import folder_name
from gibench.report.charts import Curve, curves
from gibench.report.csv_file import write_csv
from gibench.report.drawing import round_ticks
from gibench.report.summary import Row, kind_of

NEAR = 1.0
"""dB: an attack has arrived where its iterates stay so close to what it answers."""


class Point(NamedTuple):
    """The iterate after `step` steps of a search, or (`answer`) what the attack answered in the end.

    images: how many were scored. psnr, bad_pixels: means over them; tv_ratio: their median, see `ErrorsInPictures`.
    objective: the attacker's own, the median over updates; None of the answer, whose objective is another figure, and
    where it is not finite.
    """

    step: int
    answer: bool
    images: int
    psnr: float
    bad_pixels: float
    tv_ratio: float | None
    objective: float | None


@dataclass(frozen=True)
class Speed:
    """How fast an attack is, at its own level and at that of others.

    arrived: the first traced step from which on its PSNR stays within `NEAR` of its answer's; None where no iterate
    does, because the search went astray from a better one. Who gains little arrives early, so that this compares
    attacks of one level only. passed: the first traced step at which the PSNR is not below a common level, or all
    `steps` where only the answer is not; None where that is, too, and without such a level. psnr: of the answer.
    """

    attack: str
    images: int
    steps: int
    psnr: float
    arrived: int | None
    passed: int | None


@dataclass(frozen=True)
class Traces:
    """What the page shows of the traces of a scenario; level: see `common_level`."""

    figure: Markup
    speeds: list[Speed]
    level: float | None


def trace_path(run_folder: Path, scenario: str, attack: str) -> Path:
    """Where a run stores the trace of a cell."""
    return run_folder / "traces" / folder_name(scenario) / f"{folder_name(attack)}.csv"


def write_trace(points: Sequence[Point], path: Path) -> None:
    """Write all points at once, so that no kill leaves half of them.

    Raises:
        StorageError: when the file cannot be written.
    """
    write_csv(Point._fields, [point._asdict() for point in points], path)


def read_trace(path: Path) -> list[Point]:
    """Return what `write_trace` wrote; a missing file is an empty trace.

    Raises:
        RecordError: for a file that it did not write.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [_point(line) for line in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path} is no trace ({error}); delete it, and the page does without.") from error


def speed(attack: str, points: Sequence[Point], *, level: float | None) -> Speed:
    """Say when the trace of `attack`, whose last point is its answer, has arrived, and when it passed `level` dB."""
    *iterates, answer = points
    arrived = None
    for point in reversed(iterates):
        if abs(point.psnr - answer.psnr) > NEAR:
            break
        arrived = point.step
    passed = None if level is None else next((point.step for point in points if point.psnr >= level), None)
    return Speed(attack, answer.images, answer.step, answer.psnr, arrived, passed)


def collect_traces(run_folder: Path, rows: Sequence[Row], colors: Mapping[str, str]) -> Traces | None:
    """Draw PSNR by step of every attack and control of a scenario that has a trace, in the order of `rows`."""
    shown = [row.attack for row in rows if row.kind in ("attack", "control")]
    found = {attack: read_trace(trace_path(run_folder, rows[0].scenario, attack)) for attack in shown}
    found = {attack: points for attack, points in found.items() if len(points) > 1}
    if not found:
        return None
    values = [point.psnr for points in found.values() for point in points]
    lines = [
        Curve(attack, colors[attack], [(point.step, point.psnr) for point in points])
        for attack, points in found.items()
    ]
    ticks = round_ticks(min(values), max(values))
    figure = curves(lines, x_label="step", y_label="PSNR, dB", y_ticks=ticks, log_x=True)
    level = common_level(found, rows)
    return Traces(figure, [speed(attack, points, level=level) for attack, points in found.items()], level)


def common_level(found: Mapping[str, Sequence[Point]], rows: Sequence[Row]) -> float | None:
    """Return the dB at which speeds are compared: an attack's least answer, or the best floor where that is higher.

    Below a floor there is nothing to be fast at. Controls have no say, and a prior alone is no floor of other attacks.

    Args:
        found: attack or control -> its trace.
        rows: of the scenario.

    Returns:
        None where no attack is traced, or not all traces are of the same images.
    """
    answers = [points[-1] for points in found.values()]
    reached = [points[-1].psnr for attack, points in found.items() if kind_of(attack) == "attack"]
    if not reached or len({answer.images for answer in answers}) > 1:
        return None
    floors = [row.psnr.value for row in rows if row.kind == "floor" and not row.attack.endswith(" prior alone")]
    return max([min(reached), *(value for value in floors if value is not None)])


def _point(line: Mapping[str, str]) -> Point:
    return Point(
        step=int(line["step"]),
        answer={"yes": True, "no": False}[line["answer"]],
        images=int(line["images"]),
        psnr=float(line["psnr"]),
        bad_pixels=float(line["bad_pixels"]),
        tv_ratio=float(line["tv_ratio"]) if line["tv_ratio"] else None,
        objective=float(line["objective"]) if line["objective"] else None,
    )
