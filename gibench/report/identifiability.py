"""What the diagnosis foretells, held against what attacks reach: one table, one scatter, rank correlations."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from markupsafe import Markup

from gibench.diagnostics import Identifiability, NoiseFloor, read_identifiability
from gibench.metrics.intervals import Interval
from gibench.report.correlation import rank_correlation
from gibench.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    canvas,
    draw_text,
    markup,
    round_ticks,
    x_axis,
    y_axis,
)
from gibench.report.foretold import write_foretold_csv
from gibench.report.summary import Group, kind_of

FILE = "identifiability.jsonl"
SHOWN = 1e-2
"""The assumed noise of the scatter, in units of the update's RMS entry: fixed, not chosen by what it foretells."""

Predictor = Callable[[Identifiability], float | None]


class Point(NamedTuple):
    """One update under one attack: its diagnosis, and the mean PSNR (dB) of its images."""

    scenario: str
    found: Identifiability
    psnr: float


@dataclass(frozen=True)
class Line:
    """One scenario: medians over its diagnosed updates; None where an update has only an estimated spectrum.

    nulls: the range of null directions. bounds: PSNR (dB) of the least expected MSE under each
        assumed noise, or the defense's own.
    reached: attack -> mean PSNR (dB) on the same updates.
    """

    scenario: str
    updates: int
    unknowns: int
    nulls: tuple[int, int] | None
    condition: float | None
    own_noise: bool
    bounds: tuple[float, ...]
    reached: Mapping[str, float]
    remark: str | None


class Correlation(NamedTuple):
    """Of one predictor with what one attack reaches: pooled over scenarios, and within them."""

    pooled: Interval
    within: Interval


@dataclass(frozen=True)
class Diagnosis:
    """What the page shows.

    correlations: predictor -> one rank correlation per attack, in the order of `attacks`. several: scenarios, so that
        pooled and within are two things.
    """

    noises: tuple[float, ...]
    attacks: tuple[str, ...]
    lines: Sequence[Line]
    scatter: Markup | None
    correlations: Sequence[tuple[str, Sequence[Correlation]]]
    several: bool
    shown: float
    estimated: bool


def collect_identifiability(
    run_folder: Path, groups: Mapping[str, Mapping[str, Group]], colors: Mapping[str, str]
) -> Diagnosis | None:
    """Bring the diagnosed updates of a run and what attacks reached on them together; None where none is diagnosed.

    Both are written into the run folder, too, as `identifiability.csv`.

    Args:
        run_folder: with `identifiability.jsonl`.
        groups: scenario -> attack -> records.
        colors: of the attacks.

    Raises:
        RecordError: the file is damaged.
        StorageError: the table cannot be written.
    """
    records = read_identifiability(run_folder / FILE)
    if not records:
        return None
    points = {attack: _points(records, groups, attack) for attack in colors if kind_of(attack) == "attack"}
    points = {attack: found for attack, found in points.items() if found}
    write_foretold_csv(points, run_folder / "identifiability.csv")
    noises = tuple(sorted({floor.relative for r in records if not r.own_noise for floor in r.floors}, reverse=True))
    scenarios = dict.fromkeys(record.scenario for record in records)
    return Diagnosis(
        noises=noises,
        attacks=tuple(points),
        lines=[_line(name, [r for r in records if r.scenario == name], points) for name in scenarios],
        scatter=draw_scatter(points, colors, relative=SHOWN) if points else None,
        correlations=[
            (name, [_correlation(found, predictor) for found in points.values()])
            for name, predictor in _predictors(noises, own=any(record.own_noise for record in records)).items()
        ],
        several=len(scenarios) > 1,
        shown=SHOWN,
        estimated=any(record.method == "estimated" for record in records),
    )


def _predictors(noises: Sequence[float], *, own: bool) -> dict[str, Predictor]:
    """What is held against the reached PSNR; of each, more should mean better reconstructions."""
    found: dict[str, Predictor] = {
        "share of directions that leave a trace": lambda r: None if r.null_share is None else 1 - r.null_share,
        "one over the condition": lambda r: 1 / r.condition if r.condition else None,
    }
    for noise in noises:
        found[f"PSNR of least MSE at noise {noise:g} RMS"] = lambda r, noise=noise: _psnr(r, noise)  # type: ignore[misc]
    found[f"bits per pixel at noise {SHOWN:g} RMS"] = lambda r: _bits(r, SHOWN)
    if own:
        found["PSNR of least MSE at the defense's own noise"] = lambda r: _psnr(r, None)
        found["bits per pixel at the defense's own noise"] = lambda r: _bits(r, None)
    return found


def _floor(record: Identifiability, relative: float | None) -> NoiseFloor | None:
    """What is left at an assumed noise, or (None) at the defense's own; None where the record has no such noise."""
    if record.own_noise != (relative is None):
        return None
    return next((floor for floor in record.floors if relative in (None, floor.relative)), None)


def _psnr(record: Identifiability, relative: float | None) -> float | None:
    floor = _floor(record, relative)
    return None if floor is None else floor.psnr


def _bits(record: Identifiability, relative: float | None) -> float | None:
    floor = _floor(record, relative)
    return None if floor is None else floor.bits / record.unknowns


def _points(records: Sequence[Identifiability], groups: Mapping[str, Mapping[str, Group]], attack: str) -> list[Point]:
    """The diagnosed updates that an attack was tried on, of the scenarios in which it answered any image.

    Where it refused some updates only, these score as the floor like any failure (rule R7).
    """
    found = []
    for record in records:
        scored = groups.get(record.scenario, {}).get(attack, {})
        if all(one.status in ("refused", "labels") for one in scored.values()):
            continue
        own = [one for (update_id, _), one in scored.items() if update_id == record.update_id]
        if own:
            found.append(Point(record.scenario, record, statistics.fmean(one.psnr for one in own)))
    return found


def _line(name: str, records: Sequence[Identifiability], points: Mapping[str, Sequence[Point]]) -> Line:
    nulls = [record.null_directions for record in records if record.null_directions is not None]
    conditions = [record.condition for record in records if record.condition is not None]
    whole = len(nulls) == len(records)
    bounds = zip(*([floor.psnr for floor in record.floors] for record in records), strict=True)
    own = {attack: [point.psnr for point in found if point.scenario == name] for attack, found in points.items()}
    return Line(
        scenario=name,
        updates=len(records),
        unknowns=records[0].unknowns,
        nulls=(min(nulls), max(nulls)) if whole else None,
        condition=statistics.median(conditions) if whole and conditions else None,
        own_noise=records[0].own_noise,
        bounds=tuple(statistics.median(column) for column in bounds),
        reached={attack: statistics.fmean(values) for attack, values in own.items() if values},
        remark=records[0].remark,
    )


def _correlation(points: Sequence[Point], predictor: Predictor) -> Correlation:
    known = [(value, point) for point in points if (value := predictor(point.found)) is not None]
    predicted, reached = [value for value, _ in known], [point.psnr for _, point in known]
    updates, scenarios = [point.found.update_id for _, point in known], [point.scenario for _, point in known]
    return Correlation(
        rank_correlation(predicted, reached, updates),
        rank_correlation(predicted, reached, updates, within=scenarios),
    )


def draw_scatter(points: Mapping[str, Sequence[Point]], colors: Mapping[str, str], *, relative: float) -> Markup | None:
    """Draw one dot per update and attack: reached PSNR over that of the least expected MSE; equal on the dashed line.

    Args:
        points: attack -> its updates.
        colors: of the attacks.
        relative: the assumed noise; updates without it, and those with the defense's own, are left out, and None is
            returned without any.
    """
    dots = [
        (bound, point, attack)
        for attack, found in points.items()
        for point in found
        if (bound := _psnr(point.found, relative)) is not None
    ]
    if not dots:
        return None
    x_ticks = round_ticks(min(bound for bound, _, _ in dots), max(bound for bound, _, _ in dots))
    y_ticks = round_ticks(min(point.psnr for _, point, _ in dots), max(point.psnr for _, point, _ in dots))
    label = f"PSNR of least MSE at noise of {relative:g} RMS, dB"
    svg = canvas(HEIGHT, f"reached PSNR against {label}")
    x = Scale(x_ticks[0], x_ticks[-1], LEFT + 8, WIDTH - RIGHT)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    x_axis(svg, x, x_ticks, (TOP, HEIGHT - BOTTOM), label)
    y_axis(svg, y, y_ticks, "reached PSNR, dB")
    _diagonal(svg, x, y)
    for bound, point, attack in dots:
        place = {"class": f"point {colors[attack]}", "cx": f"{x(bound):.1f}", "cy": f"{y(point.psnr):.1f}", "r": "4"}
        hint = f"{attack}, {point.scenario}: least MSE {bound:.1f} dB, reached {point.psnr:.1f} dB"
        ET.SubElement(ET.SubElement(svg, "circle", place), "title").text = hint
    return markup(svg)


def _diagonal(svg: ET.Element, x: Scale, y: Scale) -> None:
    """Where both are equal, as far as both axes reach."""
    low, high = max(x.low, y.low), min(x.high, y.high)
    if low < high:
        ends = {"x1": f"{x(low):.1f}", "y1": f"{y(low):.1f}", "x2": f"{x(high):.1f}", "y2": f"{y(high):.1f}"}
        ET.SubElement(svg, "line", {"class": "mark floor", **ends})
        draw_text(svg, x(high) - 6, y(high) + 12, "equal", "mark-label", anchor="end")
