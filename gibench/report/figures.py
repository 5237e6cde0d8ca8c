"""The figures of one scenario: what the records say, handed to the drawing functions of `charts`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from torch import Tensor

from gibench.metrics.risk import risk_curve
from gibench.report.charts import Curve, Lane, Mark, Point, curves, quality_against_cost, strip
from gibench.report.drawing import decades, round_ticks
from gibench.report.pictures import gif_uri, load_animation
from gibench.report.summary import Group, Row
from gibench.report.words import percent

MOST_FILMS = 6
_RISK_POINTS = 120


@dataclass(frozen=True)
class Animation:
    """One optimization, as a GIF and as the course of its objective."""

    attack: str
    gif: str
    objective: Markup
    first_step: int
    last_step: int


def dot_plot(
    rows: Sequence[Row], attacks: Mapping[str, Group], colors: Mapping[str, str], *, success_psnr: float
) -> Markup:
    """PSNR of each image under each attack, with the floors and the threshold of success as lines."""
    lanes = [
        Lane(
            name=row.attack,
            note=f"{percent(row.success.value)} % recovered",
            color=colors[row.attack],
            values=[record.psnr for record in attacks[row.attack].values()],
            interval=row.psnr,
        )
        for row in tried(rows)
    ]
    marks = [Mark(_short(row), row.psnr.value or 0.0, row.kind) for row in rows if row.kind in ("floor", "oracle")]
    marks.append(Mark(f"recovered from {success_psnr:g} dB on", success_psnr, "success"))
    return strip(lanes, marks, label="PSNR of each image, dB")


def risk_plot(rows: Sequence[Row], attacks: Mapping[str, Group], colors: Mapping[str, str]) -> Markup:
    """R(delta) of each attack and of the best floor, with delta in units of sqrt(CHW): the RMS error per pixel.

    In that unit it is the same axis for images of any size.
    """
    best = best_floor(rows)
    shown = {row.attack: colors[row.attack] for row in tried(rows)} | ({best.attack: "floor"} if best else {})
    worst = max((record.mse for name in shown for record in attacks[name].values()), default=0.0)
    deltas = [max(math.sqrt(worst), 0.01) * i / _RISK_POINTS for i in range(_RISK_POINTS + 1)]
    lines = []
    for name, color in shown.items():
        records = list(attacks[name].values())
        failed = [record.status != "ok" for record in records]
        curve = risk_curve([record.mse for record in records], image_size=1, failed=failed, deltas=deltas)
        lines.append(Curve(name, color, list(zip(deltas, (100 * curve.risk).tolist(), strict=True))))
    return curves(
        lines, x_label="δ, RMS error per pixel", y_label="images missed by more than δ, %", y_ticks=range(0, 101, 25)
    )


def cost_plot(rows: Sequence[Row], colors: Mapping[str, str]) -> Markup:
    """Mean PSNR over gradient evaluations per image."""
    best = best_floor(rows)
    points = [Point(row.attack, colors[row.attack], row.gradient_evaluations, row.psnr) for row in tried(rows)]
    floor = Mark(f"best floor: {_short(best)}", best.psnr.value or 0.0, "floor") if best else None
    return quality_against_cost(points, floor)


def animations(run_folder: Path, rows: Sequence[Row], colors: Mapping[str, str]) -> list[Animation]:
    """The recorded optimizations of a scenario, the best attack's first; of many attacks the film of one.

    That one ends closest to its private image. Alone it has 25 frames, a quarter of a megabyte; of several each has 16
    smaller ones.
    """
    attacks = [row for row in rows if row.kind == "attack"]
    stored = {row.attack: load_animation(run_folder, row.scenario, row.attack) for row in attacks}
    films = {attack: film for attack, film in stored.items() if film}
    if len(films) > MOST_FILMS:
        errors = {name: float((film["frames"][-1] - film["private"]).square().mean()) for name, film in films.items()}
        closest = min(errors, key=lambda name: errors[name])
        films = {closest: films[closest]}
    size = {"most_frames": 16, "side": 96} if len(films) > 1 else {"most_frames": 25, "side": 128}
    return [_animation(attack, film, colors[attack], **size) for attack, film in films.items()]


def _animation(attack: str, film: Mapping[str, Tensor], color: str, *, most_frames: int, side: int) -> Animation:
    steps: list[int] = film["steps"].tolist()
    return Animation(
        attack=attack,
        gif=gif_uri(film["frames"], film["private"], most_frames=most_frames, side=side),
        objective=_course(Curve(attack, color, list(zip(steps, film["objective"].tolist(), strict=True)))),
        first_step=steps[0],
        last_step=steps[-1],
    )


def _course(line: Curve) -> Markup:
    """An objective over its steps; logarithmic where it spans more than a factor of ten."""
    values = [value for _, value in line.points]
    log_y = min(values) > 0 and max(values) > 10 * min(values)
    ticks = decades(values) if log_y else round_ticks(min(values), max(values))
    return curves([line], x_label="step", y_label="objective", y_ticks=ticks, log_y=log_y)


def attacking(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that are given an update: attacks and controls."""
    return [row for row in rows if row.kind in ("attack", "control")]


def tried(rows: Sequence[Row]) -> list[Row]:
    """Return the attacks and controls that did not refuse: what stands for a refusal is not theirs to be drawn."""
    return [row for row in attacking(rows) if row.has_images]


def best_floor(rows: Sequence[Row]) -> Row | None:
    """Return the floor with the highest mean, whichever attack it belongs to."""
    return max((row for row in rows if row.kind == "floor"), key=lambda row: row.psnr.value or 0.0, default=None)


def _short(row: Row) -> str:
    return row.attack.removeprefix("floor: ")
