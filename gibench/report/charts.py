"""Charts of the report as inline SVG: dots per image, curves, and quality against cost."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

from gibench.metrics.intervals import Interval
from gibench.report.drawing import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    canvas,
    decades,
    draw_line,
    draw_text,
    ends,
    markup,
    round_ticks,
    x_axis,
    y_axis,
)

RADIUS = 2.6
LANE = 66
_LABEL_ROW = 15


@dataclass(frozen=True)
class Lane:
    """One attack in a dot plot: a value per image, their mean and its interval."""

    name: str
    note: str
    color: str
    values: Sequence[float]
    interval: Interval


@dataclass(frozen=True)
class Mark:
    """A labelled vertical line in a dot plot."""

    label: str
    value: float
    color: str


@dataclass(frozen=True)
class Curve:
    """One line of a line chart."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Point:
    """One attack in quality against cost."""

    name: str
    color: str
    cost: float
    interval: Interval


def strip(lanes: Sequence[Lane], marks: Sequence[Mark], *, label: str) -> Markup:
    """Draw one dot per image, stacked, so that two modes look like two; below each lane its mean and interval."""
    marks = sorted(marks, key=lambda mark: mark.value)  # rising: no line runs through a label
    top = 12 + _LABEL_ROW * len(marks)
    bottom = top + LANE * len(lanes)
    svg = canvas(bottom + BOTTOM, label)
    values = [value for lane in lanes for value in lane.values] + [mark.value for mark in marks]
    ticks = round_ticks(min(values), max(values))
    x = Scale(ticks[0], ticks[-1], RADIUS, WIDTH - RIGHT)
    x_axis(svg, x, ticks, (top, bottom), label)
    for row, mark in enumerate(marks):
        place, start = x(mark.value), 4 + _LABEL_ROW * row
        draw_line(svg, place, start, place, bottom, f"mark {mark.color}")
        room = place < WIDTH - 150
        draw_text(
            svg, place + (5 if room else -5), start + 10, mark.label, "mark-label", anchor="start" if room else "end"
        )
    for row, lane in enumerate(lanes):
        _lane(svg, x, top + LANE * row, lane)
    return markup(svg)


def _lane(svg: ET.Element, x: Scale, top: float, lane: Lane) -> None:
    base = top + LANE - 12
    bins = Counter(round(x(value) / (2 * RADIUS)) for value in lane.values)
    step = min(2 * RADIUS, (LANE - 36) / max(bins.values()))
    dots = [
        f"M{place * 2 * RADIUS:.1f} {base - RADIUS - step * level:.1f}h0"
        for place, count in sorted(bins.items())
        for level in range(count)
    ]
    ET.SubElement(
        svg, "path", {"class": f"dots {lane.color}", "d": "".join(dots), "stroke-width": f"{2 * RADIUS - 0.6}"}
    )
    draw_line(svg, x.start, base, x.end, base, "grid")
    low, mean, high = ends(lane.interval)
    draw_line(svg, x(low), base + 5, x(high), base + 5, f"interval-bar {lane.color}")
    draw_line(svg, x(mean), base + 1, x(mean), base + 9, f"interval-bar {lane.color}")
    draw_text(svg, x.end, top + 16, lane.name, "lane", anchor="end", note=f"  {lane.note}")


def curves(
    lines: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    y_ticks: Sequence[float],
    log_x: bool = False,
    log_y: bool = False,
) -> Markup:
    """Draw lines over a common axis that begins at 0, or by logarithm; `y_ticks` from the lowest to the highest."""
    svg = canvas(HEIGHT, f"{y_label} against {x_label}")
    places = [place for line in lines for place, _ in line.points]
    x_ticks = decades(places) if log_x else round_ticks(0.0, max(places))
    x = Scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT, log=log_x)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP, log=log_y)
    x_axis(svg, x, x_ticks, (TOP, HEIGHT - BOTTOM), x_label)
    y_axis(svg, y, y_ticks, y_label)
    for line in lines:
        path = "L".join(f"{x(place):.1f} {y(value):.1f}" for place, value in line.points)
        element = ET.SubElement(svg, "path", {"class": f"curve {line.color}", "d": f"M{path}"})
        ET.SubElement(element, "title").text = line.name
    return markup(svg)


def quality_against_cost(points: Sequence[Point], floor: Mark | None) -> Markup:
    """Draw mean PSNR with its interval over gradient evaluations per image; what needs none stands at 1."""
    x_label, y_label = "gradient evaluations per image", "PSNR, dB"
    svg = canvas(HEIGHT, f"{y_label} against {x_label}")
    if min(point.cost for point in points) < 1:
        x_label += " (none at 1)"
    x_ticks = decades([max(point.cost, 1.0) for point in points])
    values = [value for point in points for value in ends(point.interval)] + ([floor.value] if floor else [])
    y_ticks = round_ticks(min(values), max(values))
    x = Scale(x_ticks[0], x_ticks[-1], LEFT + 12, WIDTH - RIGHT - 12, log=True)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    x_axis(svg, x, x_ticks, (TOP, HEIGHT - BOTTOM), x_label)
    y_axis(svg, y, y_ticks, y_label)
    if floor:
        draw_line(svg, LEFT, y(floor.value), WIDTH - RIGHT, y(floor.value), f"mark {floor.color}")
        draw_text(svg, WIDTH - RIGHT, y(floor.value) + 13, floor.label, "mark-label", anchor="end")
    taken: list[tuple[float, float, float]] = []
    for point in points:
        place, (low, mean, high) = x(max(point.cost, 1.0)), ends(point.interval)
        upper, lower = y(high) - 6, y(low) + 6
        while any(abs(place - other) < 6 and upper < below and above < lower for other, above, below in taken):
            place -= 6  # side by side, not on top
        taken.append((place, upper, lower))
        draw_line(svg, place, y(low), place, y(high), f"interval-bar {point.color}")
        dot = {"class": f"point {point.color}", "cx": f"{place:.1f}", "cy": f"{y(mean):.1f}", "r": "5"}
        ET.SubElement(ET.SubElement(svg, "circle", dot), "title").text = f"{point.name}: {mean:.1f} dB"
    return markup(svg)
