"""The figure of the limit: mean squared error over noise, both by logarithm."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from gibench.metrics.intervals import Interval
from gibench.report.drawing import (
    LEFT,
    TOP,
    Scale,
    canvas,
    decades,
    draw_line,
    draw_text,
    ends,
    in_powers,
    y_axis,
)
from gibench.report.series_chart import WIDTH, draw_curve, draw_dot, draw_names, spread

TALL = 360  # of the chart
_NAMES = 170  # room for the names of lines
_LABEL = "σ, standard deviation of the noise on each entry of the update"


@dataclass(frozen=True)
class Line:
    """One line: sigma and a positive error; with `intervals` it is measured, and each point is a dot with its bar."""

    name: str
    color: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[Interval] = ()


def draw_limit(lines: Sequence[Line]) -> ET.Element:
    """Draw bounds as lines, and what is reached as dots with their 95 % intervals, side by side at each noise."""
    right, bottom = WIDTH - _NAMES, TOP + TALL
    svg = canvas(bottom + 44, "mean squared error against noise", WIDTH)
    svg.set("class", "series")
    x_ticks = decades([sigma for line in lines for sigma, _ in line.points])
    levels = [level for line in lines for _, level in line.points]
    levels += [level for line in lines for interval in line.intervals for level in ends(interval)]
    y_ticks = decades(levels)
    x = Scale(x_ticks[0], x_ticks[-1], LEFT + 16, right - 16, log=True)
    y = Scale(y_ticks[0], y_ticks[-1], bottom, TOP, log=True)
    y_axis(svg, y, y_ticks, "mean squared error, pixels in [0, 1]", right)
    for tick in x_ticks:
        draw_line(svg, x(tick), TOP, x(tick), bottom, "grid")
        draw_text(svg, x(tick), bottom + 16, in_powers(tick), "tick", anchor="middle")
    draw_text(svg, right, bottom + 36, _LABEL, "axis", anchor="end")
    measured = [line for line in lines if line.intervals]
    apart = spread([x(sigma) for sigma, _ in lines[0].points], len(measured))
    for line in lines:
        if not line.intervals:
            draw_curve(svg, line.name, line.color, [(x(sigma), y(level)) for sigma, level in line.points])
    for position, line in enumerate(measured):
        shift = apart * (position - (len(measured) - 1) / 2)
        places = [(x(sigma) + shift, y(max(level, y_ticks[0]))) for sigma, level in line.points]
        draw_curve(svg, line.name, line.color, places)
        for (place, height), (sigma, level), interval in zip(places, line.points, line.intervals, strict=True):
            low, _, high = (max(end, y_ticks[0]) for end in ends(interval))
            draw_line(svg, place, y(low), place, y(high), f"interval-bar {line.color}")
            draw_dot(svg, place, height, line.color, f"{line.name} at σ = {sigma:g}: {level:.2e}")
    last = [(line.name, line.color, y(max(line.points[-1][1], y_ticks[0]))) for line in lines]
    draw_names(svg, last, right, bottom)
    return svg
