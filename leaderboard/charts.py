"""Charts of the leaderboard, drawn with the report's hand: risk with a band, dots, quality against cost."""

import math
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup

from gibench.report.charts import Lane, Mark, Point, quality_against_cost, strip
from gibench.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    canvas,
    markup,
    round_ticks,
    x_axis,
    y_axis,
)
from gibench.report.words import percent
from leaderboard.board import clusters
from leaderboard.rows import COLORS, FloorRow, Row
from leaderboard.statistics import Band, risk_band

_POINTS = 61


def risk_chart(row: Row) -> Markup:
    """R(delta) of a row with its band, and of its best floor; delta as RMS error per pixel."""
    entry, group = row.entry, clusters(row.entry)
    mse, floor = [image.mse for image in entry.images], entry.floors[row.floor].mse
    failed = [image.status != "ok" for image in entry.images]
    worst = math.sqrt(max(*mse, *floor, 1e-4))
    deltas = np.linspace(0, worst, _POINTS)
    band = risk_band(mse, failed, group, deltas)
    below = risk_band(floor, [False] * len(floor), group, deltas)
    svg = canvas(HEIGHT, "share of images missed by more than delta, against delta")
    ticks = round_ticks(0.0, worst)
    x = Scale(ticks[0], ticks[-1], LEFT, WIDTH - RIGHT)
    y = Scale(0, 100, HEIGHT - BOTTOM, TOP)
    x_axis(svg, x, ticks, (TOP, HEIGHT - BOTTOM), "δ, RMS error per pixel")
    y_axis(svg, y, range(0, 101, 25), "images missed by more than δ, %")
    color = COLORS[entry.attack.family]
    outline = [*zip(deltas, band.low, strict=True), *reversed(list(zip(deltas, band.high, strict=True)))]
    ET.SubElement(svg, "path", {"class": f"band {color}", "d": f"{_path(x, y, outline)}Z"})
    ET.SubElement(svg, "path", {"class": "curve floor", "d": _curve(x, y, below)})
    ET.SubElement(svg, "path", {"class": f"curve {color}", "d": _curve(x, y, band)})
    return markup(svg)


def dots(row: Row) -> Markup:
    """PSNR of each image, with the floors and the threshold of recovery."""
    entry = row.entry
    lane = Lane(
        name=entry.attack.name,
        note=f"{percent(row.success.value)} % recovered",
        color=COLORS[entry.attack.family],
        values=[image.psnr for image in entry.images],
        interval=row.psnr,
    )
    marks = [
        Mark(name, float(np.mean(floor.psnr)), "oracle" if name.endswith("(oracle)") else "floor")
        for name, floor in entry.floors.items()
    ]
    marks.append(Mark(f"recovered from {entry.success_psnr:g} dB on", entry.success_psnr, "success"))
    return strip([lane], marks, label="PSNR of each image, dB")


def families(rows: Sequence[Row], floor: FloorRow | None) -> Markup:
    """Quality against cost, colored by prior family."""
    points = [Point(row.entry.attack.title, COLORS[row.entry.attack.family], row.gradients, row.psnr) for row in rows]
    mark = Mark(f"best floor: {floor.name}", floor.psnr.value or 0.0, "floor") if floor else None
    return quality_against_cost(points, mark)


def _curve(x: Scale, y: Scale, band: Band) -> str:
    return _path(x, y, list(zip(band.deltas, band.risk, strict=True)))


def _path(x: Scale, y: Scale, points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x(float(delta)):.1f} {y(100 * float(risk)):.1f}" for delta, risk in points)
