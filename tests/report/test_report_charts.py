"""Charts: one dot per image, true positions, round ticks."""

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibench.metrics import Interval
from gibench.report.charts import (
    Curve,
    Lane,
    Mark,
    Point,
    curves,
    quality_against_cost,
    strip,
)
from gibench.report.drawing import Scale, decades, round_ticks

INTERVAL = Interval(20.0, 18.0, 23.0, images=3, clusters=3)
ONE_UPDATE = Interval(20.0, None, None, images=1, clusters=1, reason="one update only.")


def drawn(markup: str, tag: str, style: str) -> list[ET.Element]:
    root = ET.fromstring(markup)  # noqa: S314 - our own drawing
    return [element for element in root.iter(tag) if style in (element.get("class") or "").split()]


def test_one_dot_per_image_however_many_coincide() -> None:
    values = [20.0] * 500 + [50.0, 5.0]
    chart = strip([Lane("ig", "", "c0", values, INTERVAL)], [Mark("mean image", 12.0, "floor")], label="PSNR")
    [dots] = drawn(chart, "path", "dots")
    places = [(float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", dots.get("d") or "")]
    assert len(places) == 502
    assert len({x for x, _ in places}) == 3
    top = min(y for _, y in places)
    [mark] = drawn(chart, "line", "mark")
    assert top > float(mark.get("y1") or 0)


def test_bars_span_the_interval() -> None:
    chart = strip([Lane("ig", "", "c0", [0.0, 40.0], INTERVAL)], [], label="PSNR")
    bar, mean = drawn(chart, "line", "interval-bar")
    low, high, middle = float(bar.get("x1") or 0), float(bar.get("x2") or 0), float(mean.get("x1") or 0)
    assert (middle - low) / (high - low) == pytest.approx(2 / 5, abs=0.01)
    single = strip([Lane("ig", "", "c0", [0.0, 40.0], ONE_UPDATE)], [], label="PSNR")
    bar = drawn(single, "line", "interval-bar")[0]
    assert bar.get("x1") == bar.get("x2")


def test_a_curve_goes_through_its_points() -> None:
    chart = curves([Curve("ig", "c0", [(0, 100), (1, 0)])], x_label="x", y_label="y", y_ticks=[0, 50, 100])
    [path] = drawn(chart, "path", "curve")
    start, end = (tuple(map(float, point.split())) for point in (path.get("d") or "")[1:].split("L"))
    assert start[0] < end[0]
    assert start[1] < end[1]  # down is up in pixels


def test_points_of_equal_cost_stand_side_by_side() -> None:
    points = [Point(name, "c0", cost, INTERVAL) for name, cost in (("a", 0), ("b", 300), ("c", 300), ("d", 300))]
    circles = drawn(quality_against_cost(points, None), "circle", "point")
    places = [float(circle.get("cx") or 0) for circle in circles]
    assert places[0] < min(places[1:])
    assert len(set(places)) == 4


def test_names_are_escaped() -> None:
    chart = strip([Lane("<script>", "</svg>", "c0", [1.0, 2.0], INTERVAL)], [Mark("<b>", 1.0, "floor")], label='"<x>')
    assert not re.search(r"<(script|b|x)>|</svg>.", chart)


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3))
def test_ticks_are_few_and_enclose_the_data(low: float, width: float) -> None:
    ticks = round_ticks(low, low + width)
    slack = 1e-6 * max(1.0, abs(low) + width)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + width - slack
    assert 2 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))


@given(st.lists(st.floats(1e-8, 1e8), min_size=1))
def test_decades_enclose_the_data(values: list[float]) -> None:
    ticks = decades(values)
    assert ticks[0] <= min(values) * (1 + 1e-9)
    assert ticks[-1] >= max(values) * (1 - 1e-9)
    assert len(ticks) >= 2


def test_scales() -> None:
    assert [Scale(0, 10, 100, 200)(value) for value in (-1, 0, 5, 10, 11)] == [100, 100, 150, 200, 200]
    assert Scale(1, 100, 0, 2, log=True)(10) == pytest.approx(1)
