"""The figure of a series: PSNR of each attack against one variable, and the victim's accuracy below it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree as ET

from gibench.metrics.intervals import Interval
from gibench.report.drawing import LEFT, TOP, Scale, canvas, draw_line, draw_text, ends, round_ticks, y_axis

WIDTH = 760
QUALITY = 270  # height of the upper chart
ACCURACY = 70  # of the lower one
_CHARACTER = 7.0  # width of one in the names of lines
_APART = 5.0  # between the intervals of two attacks at one value


@dataclass(frozen=True)
class Course:
    """One line: the value of the variable and the mean that is reached there."""

    name: str
    color: str
    points: Sequence[tuple[float, Interval]]


def draw_series(
    attacks: Sequence[Course],
    floor: Course,
    accuracy: Sequence[tuple[float, float]],
    *,
    label: str,
    logarithmic: bool,
) -> ET.Element:
    """Draw means with their 95 % intervals, the best floor as a thin line, and the accuracy where it is recorded.

    Args:
        attacks: their PSNR in dB.
        floor: its PSNR in dB; it may have no points.
        accuracy: value -> share in [0, 1]; may be empty.
        label: of the horizontal axis.
        logarithmic: beyond the smallest positive value, with 0 at the left; values must then not be negative.
    """
    lines = [course for course in (*attacks, floor) if course.points]
    values = sorted({value for course in lines for value, _ in course.points} | {value for value, _ in accuracy})
    right = WIDTH - 44 - _CHARACTER * min(max(len(course.name) for course in lines), 28)
    bottom = TOP + QUALITY + (60 + ACCURACY if accuracy else 0)
    svg = canvas(bottom + 44, f"PSNR against {label}", WIDTH)
    svg.set("class", "series")
    x = _places(values, LEFT + 16, right - 16, logarithmic=logarithmic)
    levels = [level for course in lines for _, interval in course.points for level in ends(interval)]
    ticks = round_ticks(min(levels), max(levels))
    y = Scale(ticks[0], ticks[-1], TOP + QUALITY, TOP)
    y_axis(svg, y, ticks, "PSNR, dB", right)
    _x_ticks(svg, x, values, bottom, label, right)
    draw_curve(svg, floor.name, floor.color, [(x(value), y(interval.value or 0.0)) for value, interval in floor.points])
    apart = spread([x(value) for value in values], len(attacks))
    for position, course in enumerate(attacks):
        _course(svg, course, x, y, shift=apart * (position - (len(attacks) - 1) / 2))
    last = [(course.name, course.color, y(course.points[-1][1].value or 0.0)) for course in lines]
    draw_names(svg, last, right, TOP + QUALITY)
    if accuracy:
        _accuracy(svg, accuracy, x, Scale(0, 100, bottom, bottom - ACCURACY), right)
    return svg


def _places(values: Sequence[float], start: float, end: float, *, logarithmic: bool) -> Callable[[float], float]:
    """Map a value to pixels; logarithmic means log(1 + value / smallest positive value)."""
    unit = min((value for value in values if value > 0), default=1.0)

    def bend(value: float) -> float:
        return math.log10(1 + value / unit) if logarithmic else value

    low, high = bend(values[0]), bend(values[-1])
    scale = Scale(low, high if high > low else low + 1, start, end)
    return lambda value: scale(bend(value))


def spread(places: Sequence[float], attacks: int) -> float:
    """How far intervals at one value stand apart, so that they neither coincide nor reach the next value's."""
    gap = min((after - before for before, after in pairwise(places)), default=math.inf)
    return min(_APART, 0.6 * gap / max(attacks, 1))


def _x_ticks(
    svg: ET.Element, x: Callable[[float], float], values: Sequence[float], bottom: float, label: str, right: float
) -> None:
    """A grid line at each value, and its number where there is room: first of all at both ends."""
    taken: list[tuple[float, float]] = []
    for value in (values[0], *reversed(values[1:])):
        draw_line(svg, x(value), TOP, x(value), bottom, "grid")
        number = f"{value:,g}" if abs(value) < 1e6 else f"{value:g}"
        left, end = (x(value) + side * (_CHARACTER * len(number) / 2 + 2) for side in (-1, 1))
        if all(end <= other_left or left >= other_end for other_left, other_end in taken):
            draw_text(svg, x(value), bottom + 16, number, "tick", anchor="middle")
            taken.append((left, end))
    draw_text(svg, right, bottom + 36, label, "axis", anchor="end")


def _course(svg: ET.Element, course: Course, x: Callable[[float], float], y: Scale, *, shift: float) -> None:
    places = [(x(value) + shift, y(interval.value or 0.0)) for value, interval in course.points]
    draw_curve(svg, course.name, course.color, places)
    for (place, height), (value, interval) in zip(places, course.points, strict=True):
        low, mean, high = ends(interval)
        draw_line(svg, place, y(low), place, y(high), f"interval-bar {course.color}")
        draw_dot(svg, place, height, course.color, f"{course.name} at {value:g}: {mean:.1f} dB")


def draw_curve(svg: ET.Element, name: str, color: str, places: Sequence[tuple[float, float]]) -> None:
    """A line through places in pixels; nothing without any."""
    if places:
        path = "L".join(f"{place:.1f} {height:.1f}" for place, height in places)
        element = ET.SubElement(svg, "path", {"class": f"curve {color}", "d": f"M{path}"})
        ET.SubElement(element, "title").text = name


def draw_dot(svg: ET.Element, place: float, height: float, color: str, hint: str) -> None:
    """A dot at a place in pixels that says `hint`."""
    dot = {"class": f"point {color}", "cx": f"{place:.1f}", "cy": f"{height:.1f}", "r": "4"}
    ET.SubElement(ET.SubElement(svg, "circle", dot), "title").text = hint


def draw_names(svg: ET.Element, lines: Sequence[tuple[str, str, float]], right: float, bottom: float) -> None:
    """Name each line (name, color, height in pixels) at its right end; names that would touch move apart."""
    last = sorted(lines, key=lambda line: line[2])
    heights: list[float] = []
    for _, _, height in last:
        heights.append(max(height, heights[-1] + 16 if heights else height))
    for index in reversed(range(len(heights))):
        below = heights[index + 1] - 16 if index + 1 < len(heights) else bottom
        heights[index] = min(heights[index], below)
    for height, (name, color, _) in zip(heights, last, strict=True):
        draw_line(svg, right + 8, height, right + 20, height, f"interval-bar {color}")
        draw_text(svg, right + 27, height + 4, _shortened(name), "key")


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _accuracy(
    svg: ET.Element, accuracy: Sequence[tuple[float, float]], x: Callable[[float], float], y: Scale, right: float
) -> None:
    y_axis(svg, y, (0, 50, 100), "victim's test accuracy, %", right)
    places = [(x(value), y(100 * share)) for value, share in accuracy]
    draw_curve(svg, "test accuracy", "accuracy", places)
    for (place, height), (value, share) in zip(places, accuracy, strict=True):
        draw_dot(svg, place, height, "accuracy", f"test accuracy at {value:g}: {100 * share:.1f} %")
