"""Charts of the report as inline SVG: dots per image, curves, and quality against cost.

Everything is built as an element tree, so names are escaped by construction. Colors are CSS classes of the page
(`c0` ... `c7`, `floor`), so that light and dark schemes need one drawing.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

from gibench.metrics.intervals import Interval

WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 30, 40
RADIUS = 2.6
LANE = 66
_LABEL_ROW = 15


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [start, end] in pixels, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`, clamped to the axis."""
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        position = math.log10(value) if self.log else value
        return self.start + (self.end - self.start) * min(max((position - low) / (high - low), 0.0), 1.0)


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
    svg = _svg(bottom + BOTTOM, label)
    values = [value for lane in lanes for value in lane.values] + [mark.value for mark in marks]
    ticks = round_ticks(min(values), max(values))
    x = Scale(ticks[0], ticks[-1], RADIUS, WIDTH - RIGHT)
    _x_axis(svg, x, ticks, (top, bottom), label)
    for row, mark in enumerate(marks):
        place, start = x(mark.value), 4 + _LABEL_ROW * row
        _line(svg, place, start, place, bottom, f"mark {mark.color}")
        room = place < WIDTH - 150
        _text(svg, place + (5 if room else -5), start + 10, mark.label, "mark-label", anchor="start" if room else "end")
    for row, lane in enumerate(lanes):
        _lane(svg, x, top + LANE * row, lane)
    return _markup(svg)


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
    _line(svg, x.start, base, x.end, base, "grid")
    low, mean, high = _ends(lane.interval)
    _line(svg, x(low), base + 5, x(high), base + 5, f"interval-bar {lane.color}")
    _line(svg, x(mean), base + 1, x(mean), base + 9, f"interval-bar {lane.color}")
    _text(svg, x.end, top + 16, lane.name, "lane", anchor="end", note=f"  {lane.note}")


def curves(
    lines: Sequence[Curve], *, x_label: str, y_label: str, y_ticks: Sequence[float], log_y: bool = False
) -> Markup:
    """Draw lines over a common axis that begins at 0; `y_ticks` from the lowest to the highest."""
    svg = _svg(HEIGHT, f"{y_label} against {x_label}")
    x_ticks = round_ticks(0.0, max(place for line in lines for place, _ in line.points))
    x = Scale(x_ticks[0], x_ticks[-1], LEFT, WIDTH - RIGHT)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP, log=log_y)
    _x_axis(svg, x, x_ticks, (TOP, HEIGHT - BOTTOM), x_label)
    _y_axis(svg, y, y_ticks, y_label)
    for line in lines:
        path = "L".join(f"{x(place):.1f} {y(value):.1f}" for place, value in line.points)
        element = ET.SubElement(svg, "path", {"class": f"curve {line.color}", "d": f"M{path}"})
        ET.SubElement(element, "title").text = line.name
    return _markup(svg)


def quality_against_cost(points: Sequence[Point], floor: Mark | None) -> Markup:
    """Draw mean PSNR with its interval over gradient evaluations per image; what needs none stands at 1."""
    x_label, y_label = "gradient evaluations per image", "PSNR, dB"
    svg = _svg(HEIGHT, f"{y_label} against {x_label}")
    x_ticks = decades([max(point.cost, 1.0) for point in points])
    values = [value for point in points for value in _ends(point.interval)] + ([floor.value] if floor else [])
    y_ticks = round_ticks(min(values), max(values))
    x = Scale(x_ticks[0], x_ticks[-1], LEFT + 12, WIDTH - RIGHT - 12, log=True)
    y = Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    _x_axis(svg, x, x_ticks, (TOP, HEIGHT - BOTTOM), x_label)
    _y_axis(svg, y, y_ticks, y_label)
    if floor:
        _line(svg, LEFT, y(floor.value), WIDTH - RIGHT, y(floor.value), f"mark {floor.color}")
        _text(svg, WIDTH - RIGHT, y(floor.value) + 13, floor.label, "mark-label", anchor="end")
    taken: list[float] = []
    for point in points:
        place = x(max(point.cost, 1.0))
        while any(abs(place - other) < 6 for other in taken):
            place -= 6  # side by side, not on top
        taken.append(place)
        low, mean, high = _ends(point.interval)
        _line(svg, place, y(low), place, y(high), f"interval-bar {point.color}")
        dot = {"class": f"point {point.color}", "cx": f"{place:.1f}", "cy": f"{y(mean):.1f}", "r": "5"}
        ET.SubElement(ET.SubElement(svg, "circle", dot), "title").text = f"{point.name}: {mean:.1f} dB"
    return _markup(svg)


def _svg(height: float, label: str) -> ET.Element:
    return ET.Element("svg", {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-label": label})


def _line(svg: ET.Element, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ET.SubElement(svg, "line", {"class": style, **ends})


def _text(
    svg: ET.Element, x: float, y: float, words: str, style: str, *, anchor: str = "start", note: str = ""
) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "class": style}
    element = ET.SubElement(svg, "text", place)
    element.text = words
    if note:
        ET.SubElement(element, "tspan", {"class": "note"}).text = note


def _x_axis(svg: ET.Element, x: Scale, ticks: Sequence[float], span: tuple[float, float], label: str) -> None:
    top, bottom = span
    for tick in ticks:
        _line(svg, x(tick), top, x(tick), bottom, "grid")
        _text(svg, x(tick), bottom + 16, _power(tick) if x.log else f"{tick:g}", "tick", anchor="middle")
    _text(svg, WIDTH - RIGHT, bottom + 34, label, "axis", anchor="end")


def _y_axis(svg: ET.Element, y: Scale, ticks: Sequence[float], label: str) -> None:
    for tick in ticks:
        words = _power(tick) if y.log else f"{tick:g}"
        _line(svg, LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid")
        _text(svg, LEFT - 8, y(tick) + 4, words, "tick", anchor="end")
    _text(svg, 0, 12, label, "axis")


def round_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose [low, high]."""
    raw = max(high - low, 1e-9) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(step * index, 10) for index in range(first, max(last, first + 1) + 1)]


def decades(values: Sequence[float]) -> list[float]:
    """Powers of ten that enclose the positive ones among `values`."""
    positive = [value for value in values if value > 0] or [1.0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return [10.0**exponent for exponent in range(first, max(last, first + 1) + 1)]


def _ends(interval: Interval) -> tuple[float, float, float]:
    """Low, mean and high; without an interval all three are the mean."""
    mean = interval.value or 0.0
    return mean if interval.low is None else interval.low, mean, mean if interval.high is None else interval.high


def _power(value: float) -> str:
    exponent = round(math.log10(value))
    superscript = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:,.0f}" if 0 <= exponent <= 4 else f"10{superscript}"


def _markup(svg: ET.Element) -> Markup:
    return Markup(ET.tostring(svg, encoding="unicode"))  # noqa: S704 - ElementTree has escaped every name
