"""The figure of families: quality against each cost, one line per family, each named where it ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple
from xml.etree import ElementTree as ET

from gibench.metrics.intervals import Interval
from gibench.report.drawing import (
    LEFT,
    TOP,
    WIDTH,
    Scale,
    canvas,
    decades,
    draw_line,
    draw_text,
    ends,
    in_powers,
    round_ticks,
    y_axis,
)
from gibench.report.placing import DESCENT, Box, Obstacle, Spot, along, around, place, width_of
from gibench.report.series_chart import draw_curve, draw_dot

TALL = 290  # of the axes
_BOTTOM = TOP + TALL
_BETWEEN = 40  # two panels in one file
_MARGIN = 10  # between the axes and names in the margin
_ZERO = 34  # from the place of 0 to the logarithmic part of the axis
_MOST_CHARACTERS = 20
_APART = 7.0  # intervals at one cost that would coincide
_ON_A_POINT, _ON_A_CURVE, _ON_A_LEVEL = 40.0, 3.0, 5.0  # what a name had better not cover


class Point(NamedTuple):
    """One attack: its cost, its PSNR in dB, and what is said of it when it is pointed at."""

    cost: float
    psnr: Interval
    hint: str


@dataclass(frozen=True)
class Line:
    """One family: its points in the order of its budgets."""

    name: str
    color: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Level:
    """A horizontal line: a PSNR in dB that no cost changes; `kind` is floor or limit."""

    name: str
    value: float
    kind: str


@dataclass(frozen=True)
class CostAxis:
    """Costs by logarithm from `start` to `end` in pixels; where one is 0, it stands at the left, apart."""

    costs: Sequence[float]
    start: float
    end: float
    has_zero: bool = field(init=False)
    _scale: Scale = field(init=False)

    def __post_init__(self) -> None:
        positive = [cost for cost in self.costs if cost > 0] or [1.0]
        object.__setattr__(self, "has_zero", min(self.costs) <= 0)
        low, high = min(positive) / 1.25, max(positive) * 1.25
        if not _round(low, high):
            low, high = decades(positive)[0], decades(positive)[-1]
        first = self.start + (_ZERO if self.has_zero else 0)
        object.__setattr__(self, "_scale", Scale(low, high, first, self.end, log=True))

    def __call__(self, cost: float) -> float:
        """Return the pixel of a cost."""
        return self._scale(cost) if cost > 0 else self.start

    @property
    def ticks(self) -> list[float]:
        """Round costs on the axis, 0 among them where it has a place."""
        rounds = _round(self._scale.low, self._scale.high) if max(self.costs) > 0 else []
        return [0.0, *rounds] if self.has_zero else rounds

    @property
    def gap(self) -> float:
        """Where the axis is interrupted, in pixels."""
        return self.start + _ZERO / 2


def common_ticks(lines: Sequence[Line], levels: Sequence[Level]) -> list[float]:
    """Return the numbers of the vertical axis, which all panels share."""
    values = [value for line in lines for point in line.points for value in ends(point.psnr)]
    values += [level.value for level in levels]
    return round_ticks(min(values), max(values))


def draw_panel(lines: Sequence[Line], levels: Sequence[Level], y_ticks: Sequence[float], *, label: str) -> ET.Element:
    """Draw mean PSNR with its 95 % interval against one cost, a line through the budgets of each family.

    Points whose intervals would lie on each other stand side by side, which shifts all but the first by a few pixels.

    Args:
        lines: the families; each has a point or more.
        levels: the floor and limits.
        y_ticks: of `common_ticks`.
        label: of the cost.
    """
    svg = canvas(_BOTTOM + 44, f"PSNR against {label}", WIDTH)
    svg.set("class", "families")
    room = max(width_of(shortened(line.name)) for line in lines) + _MARGIN
    right = WIDTH - room
    x = CostAxis([point.cost for line in lines for point in line.points], LEFT + 14, right - 6)
    y = Scale(y_ticks[0], y_ticks[-1], _BOTTOM, TOP)
    y_axis(svg, y, y_ticks, "PSNR, dB", right)
    _cost_ticks(svg, x, label, right)
    for level in levels:
        draw_line(svg, LEFT, y(level.value), right, y(level.value), f"mark {level.kind}")
    shifts = _side_by_side(lines, x, y)
    places = [
        [(x(point.cost) + shift, y(point.psnr.value or 0.0)) for point, shift in zip(line.points, own, strict=True)]
        for line, own in zip(lines, shifts, strict=True)
    ]
    for line, own in zip(lines, places, strict=True):
        draw_curve(svg, line.name, line.color, own)
    for line, own in zip(lines, places, strict=True):
        for point, (across, height) in zip(line.points, own, strict=True):
            low, _, high = ends(point.psnr)
            draw_line(svg, across, y(low), across, y(high), f"interval-bar {line.color}")
            draw_dot(svg, across, height, line.color, point.hint)
    _write_names(svg, lines, places, levels, y, right)
    return svg


def side_by_side(panels: Sequence[ET.Element]) -> ET.Element:
    """Put panels next to each other into one drawing."""
    both = canvas(_BOTTOM + 44, "PSNR against cost", len(panels) * (WIDTH + _BETWEEN) - _BETWEEN)
    both.set("class", "families")
    for index, panel in enumerate(panels):
        ET.SubElement(both, "g", {"transform": f"translate({index * (WIDTH + _BETWEEN)} 0)"}).extend(panel)
    return both


def shortened(name: str) -> str:
    """A name that leaves room for the drawing."""
    return name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…"


def cost_in_words(cost: float) -> str:
    """Write a round cost: 0.01, 1,000, 10⁶."""
    if cost == 0 or 0.001 <= cost < 1e6:
        return f"{cost:,g}"
    exponent = math.floor(math.log10(cost) + 1e-9)
    factor = round(cost / 10**exponent)
    return in_powers(cost) if factor == 1 else f"{factor}·{in_powers(10.0**exponent)}"


def _round(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high]; where there is one or none, 2 and 5 times them, too."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        # Through text, since 10.0**-2 * 5 is not 0.05.
        ticks = [float(f"{factor}e{exponent}") for exponent in exponents for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > 1:
            break
    return ticks


def _cost_ticks(svg: ET.Element, x: CostAxis, label: str, right: float) -> None:
    """Grid lines at round costs, a number where there is room, and two strokes where the axis is interrupted."""
    last = -math.inf
    for tick in x.ticks:
        words = cost_in_words(tick)
        draw_line(svg, x(tick), TOP, x(tick), _BOTTOM, "grid")
        if x(tick) - width_of(words) / 2 > last + 4:
            draw_text(svg, x(tick), _BOTTOM + 16, words, "tick", anchor="middle")
            last = x(tick) + width_of(words) / 2
    if x.has_zero and len(x.ticks) > 1:
        for shift in (-2, 2):
            draw_line(svg, x.gap + shift - 2, _BOTTOM + 5, x.gap + shift + 2, _BOTTOM - 5, "break")
    draw_text(svg, right, _BOTTOM + 36, label, "axis", anchor="end")


def _side_by_side(lines: Sequence[Line], x: CostAxis, y: Scale) -> list[list[float]]:
    """How far each point is moved to the side so that no interval lies on another one."""
    taken: list[Box] = []
    shifts: list[list[float]] = []
    tries = [sign * _APART * step for step in range(1, 9) for sign in (1, -1)]
    for line in lines:
        own = []
        for point in line.points:
            low, _, high = ends(point.psnr)
            across = x(point.cost)
            boxes = {
                shift: Box(across + shift - 3, y(high) - 5, across + shift + 3, y(low) + 5) for shift in (0.0, *tries)
            }
            free = (shift for shift, box in boxes.items() if not any(box.meets(other) for other in taken))
            shift = next(free, 0.0)
            taken.append(boxes[shift])
            own.append(shift)
        shifts.append(own)
    return shifts


def _write_names(
    svg: ET.Element,
    lines: Sequence[Line],
    places: Sequence[Sequence[tuple[float, float]]],
    levels: Sequence[Level],
    y: Scale,
    right: float,
) -> None:
    """Name each family beside its last point, and each level along its line, where they cover as little as possible."""
    obstacles = [Obstacle(Box(LEFT, y(level.value) - 1, right, y(level.value) + 1), _ON_A_LEVEL) for level in levels]
    names: list[list[Spot]] = []
    margin = Box(right + _MARGIN, TOP - 12, WIDTH, _BOTTOM)
    for line, own in zip(lines, places, strict=True):
        spans = [_span(y, point) for point in line.points]
        obstacles += [
            Obstacle(Box(across - 5, min(high, mean - 5), across + 5, max(low, mean + 5)), _ON_A_POINT)
            for (across, _), (high, mean, low) in zip(own, spans, strict=True)
        ]
        obstacles += [Obstacle(box, _ON_A_CURVE) for before, after in pairwise(own) for box in _beads(before, after)]
        names.append(around(own[-1][0], spans[-1], shortened(line.name), margin))
    names += [along(LEFT + 2, right, y(level.value), shortened_level(level)) for level in levels]
    found = place(names, obstacles, Box(LEFT, TOP - 12, WIDTH, _BOTTOM - 1))
    for line, own, spot in zip(lines, places, found[: len(lines)], strict=True):
        across, height = own[-1]
        middle = spot.y - DESCENT
        beside = spot.x - 3 if spot.x > across else spot.x + spot.width + 3
        if abs(middle - height) > 9 and (spot.x > across + 8 or spot.x + spot.width < across - 8):
            draw_line(svg, across, height, beside, middle, f"leader {line.color}")
        draw_text(svg, spot.x, spot.y, shortened(line.name), f"family {line.color}")
    for level, spot in zip(levels, found[len(lines) :], strict=True):
        draw_text(svg, spot.x, spot.y, shortened_level(level), "mark-label")


def _span(y: Scale, point: Point) -> tuple[float, float, float]:
    """Heights of the upper end of an interval, of its mean, and of the lower end."""
    low, mean, high = ends(point.psnr)
    return y(high), y(mean), y(low)


def shortened_level(level: Level) -> str:
    """The name of a level, with room for what it is."""
    return level.name if len(level.name) <= 40 else f"{level.name[:39]}…"


def _beads(before: tuple[float, float], after: tuple[float, float]) -> list[Box]:
    """Small boxes along a straight line."""
    (x1, y1), (x2, y2) = before, after
    count = max(int(math.hypot(x2 - x1, y2 - y1) / 5), 1)
    centers = [(x1 + (x2 - x1) * i / count, y1 + (y2 - y1) * i / count) for i in range(count + 1)]
    return [Box(x - 2, y - 2, x + 2, y + 2) for x, y in centers]
