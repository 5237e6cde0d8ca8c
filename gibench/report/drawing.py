"""What charts are drawn with: scales, axes, lines and words as elements of an SVG.

Everything is an element tree, so names are escaped by construction. Colors are CSS classes (`c0` ... `c7`, `floor`, see
`charts.css`), so that light and dark schemes need one drawing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from xml.etree import ElementTree as ET

from markupsafe import Markup

from gibench.metrics.intervals import Interval

COLORS = 8  # c0 ... c7
WIDTH, HEIGHT = 520, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 30, 40
_MARGIN = 16  # around a drawing that is a file of its own


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


def canvas(height: float, label: str, width: float = WIDTH) -> ET.Element:
    """An empty SVG in pixels, with what a screen reader says of it."""
    return ET.Element("svg", {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label})


def draw_line(svg: ET.Element, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
    """A straight line; `style` is its CSS classes."""
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ET.SubElement(svg, "line", {"class": style, **ends})


def draw_text(
    svg: ET.Element, x: float, y: float, words: str, style: str, *, anchor: str = "start", note: str = ""
) -> None:
    """Words at a place, and a note in lighter type behind them."""
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "class": style}
    element = ET.SubElement(svg, "text", place)
    element.text = words
    if note:
        ET.SubElement(element, "tspan", {"class": "note"}).text = note


def x_axis(svg: ET.Element, x: Scale, ticks: Sequence[float], span: tuple[float, float], label: str) -> None:
    """Vertical grid lines between the heights `span`, their numbers, and the axis's label below."""
    top, bottom = span
    for tick in ticks:
        draw_line(svg, x(tick), top, x(tick), bottom, "grid")
        draw_text(svg, x(tick), bottom + 16, in_powers(tick) if x.log else f"{tick:g}", "tick", anchor="middle")
    draw_text(svg, WIDTH - RIGHT, bottom + 34, label, "axis", anchor="end")


def y_axis(svg: ET.Element, y: Scale, ticks: Sequence[float], label: str, right: float = WIDTH - RIGHT) -> None:
    """Horizontal grid lines from LEFT to `right`, their numbers, and the axis's label above."""
    for tick in ticks:
        words = in_powers(tick) if y.log else f"{tick:g}"
        draw_line(svg, LEFT, y(tick), right, y(tick), "grid")
        draw_text(svg, LEFT - 8, y(tick) + 4, words, "tick", anchor="end")
    draw_text(svg, 0, y.end - 18, label, "axis")


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


def ends(interval: Interval) -> tuple[float, float, float]:
    """Low, mean and high; without an interval all three are the mean."""
    mean = interval.value or 0.0
    return mean if interval.low is None else interval.low, mean, mean if interval.high is None else interval.high


def in_powers(value: float) -> str:
    """Write a power of ten: 100, or 10⁶."""
    exponent = round(math.log10(value))
    superscript = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{value:,.0f}" if 0 <= exponent <= 4 else f"10{superscript}"


def markup(svg: ET.Element) -> Markup:
    """The drawing as a part of a page, which has the styles."""
    return Markup(ET.tostring(svg, encoding="unicode"))  # noqa: S704 - ElementTree has escaped every name


def standalone(svg: ET.Element, *more_styles: str) -> bytes:
    """The drawing as a file of its own, on a light ground and with its styles inside: `charts.css`, and more files."""
    _, _, *size = svg.attrib["viewBox"].split()
    width, height = (f"{float(side) + 2 * _MARGIN:g}" for side in size)
    place = {"x": f"{-_MARGIN}", "y": f"{-_MARGIN}", "width": width, "height": height}
    box = {"viewBox": " ".join(place.values()), "width": width, "height": height}
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **svg.attrib, **box})
    sheets = [files("gibench.report").joinpath(name) for name in ("charts.css", *more_styles)]
    ET.SubElement(root, "style").text = "".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
    ET.SubElement(root, "rect", {"class": "ground", **place})
    root.extend(svg)
    content: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return content
