"""Series: the figure's positions, its file, its table and pictures, and a page that stays whole without them."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from test_report_page import HOSTILE, Page

from gibench.metrics import Interval
from gibench.records import RunFolder, read_records
from gibench.report import write_report
from gibench.report.drawing import markup, standalone
from gibench.report.series_chart import Course, draw_series

WriteRun = Callable[..., Path]
STEPS = (0, 2, 10)


def at(mean: float) -> Interval:
    return Interval(mean, mean - 1, mean + 2, images=9, clusters=9)


def drawing(**changes: Any) -> ET.Element:
    given: dict[str, Any] = {
        "attacks": [
            Course("ig", "c0", [(0, at(20.0)), (1, at(15.0)), (1000, at(10.0))]),
            Course("dlg", "c1", [(0, at(12.0)), (1000, at(12.0))]),
        ],
        "floor": Course("best floor", "floor", [(0, at(11.0)), (1000, at(11.0))]),
        "accuracy": [(0, 0.1), (1000, 0.9)],
        "label": "step",
        "logarithmic": True,
    }
    given |= changes
    return draw_series(given.pop("attacks"), given.pop("floor"), given.pop("accuracy"), **given)


def found(svg: ET.Element, tag: str, style: str) -> list[ET.Element]:
    return [element for element in svg.iter(tag) if element.get("class") == style]


def number(element: ET.Element, name: str) -> float:
    return float(element.attrib[name])


def places_of(svg: ET.Element) -> dict[str, float]:
    """The numbers of the horizontal axis."""
    ticks = [element for element in found(svg, "text", "tick") if element.get("text-anchor") == "middle"]
    return {element.text or "": number(element, "x") for element in ticks}


def test_points_stand_at_their_means_and_bars_span_their_intervals() -> None:
    svg = drawing()
    heights = [number(dot, "cy") for dot in found(svg, "circle", "point c0")]
    assert heights == sorted(heights)  # 20, 15, 10 dB: down is up in pixels
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    per_decibel = (heights[2] - heights[0]) / 10
    bars = [bar for bar in found(svg, "line", "interval-bar c0") if bar.get("x1") == bar.get("x2")]
    assert len(bars) == 3
    assert number(bars[0], "y1") - number(bars[0], "y2") == pytest.approx(3 * per_decibel, abs=0.2)
    assert number(bars[0], "y1") - heights[0] == pytest.approx(per_decibel, abs=0.2)


def test_the_axis_is_logarithmic_beyond_the_first_step() -> None:
    places = places_of(drawing())
    assert places["0"] < places["1"] < places["1,000"]
    assert places["1"] - places["0"] == pytest.approx((places["1,000"] - places["0"]) * 0.30103 / 3.00043, abs=1)
    places = places_of(drawing(logarithmic=False))
    assert places["1,000"] - places["0"] > 400
    assert "1" not in places  # it would lie upon the 0


def test_intervals_at_one_value_stand_side_by_side() -> None:
    svg = drawing()
    first, second = (found(svg, "circle", f"point c{i}")[0] for i in range(2))
    assert first.get("cx") != second.get("cx")


def test_names_of_lines_that_end_together_do_not_touch() -> None:
    lines = [Course(f"attack {i}", f"c{i}", [(0, at(10.0 + i / 100))]) for i in range(6)]
    svg = drawing(attacks=lines)
    heights = sorted(number(name, "y") for name in found(svg, "text", "key"))
    assert len(heights) == 7
    assert min(after - before for before, after in pairwise(heights)) >= 15.9


def test_accuracy_is_drawn_where_it_is_recorded() -> None:
    svg = drawing()
    low, high = (number(dot, "cy") for dot in found(svg, "circle", "point accuracy"))
    assert low > high > max(number(dot, "cy") for dot in found(svg, "circle", "point c0"))
    assert not found(drawing(accuracy=[]), "circle", "point accuracy")


def test_a_single_value_without_interval_or_floor() -> None:
    alone = Interval(20.0, None, None, images=1, clusters=1, reason="one update only.")
    svg = drawing(attacks=[Course("ig", "c0", [(0, alone)])], floor=Course("best floor", "floor", []), accuracy=[])
    assert len(found(svg, "circle", "point c0")) == 1
    assert [name.text for name in found(svg, "text", "key")] == ["ig"]


def test_the_file_has_its_styles_inside() -> None:
    root = ET.fromstring(standalone(drawing()))  # noqa: S314 - our own drawing
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    style = root.find("{http://www.w3.org/2000/svg}style")
    assert style is not None
    classes = {name for element in root.iter() for name in (element.get("class") or "").split()}
    assert {"c0", "c1", "floor", "accuracy", "ground"} <= classes
    assert {name for name in classes if name not in ("tick", "axis", "series")} <= set(
        re.findall(r"\.([\w-]+)", style.text or "")
    )
    assert "prefers-color-scheme" not in (style.text or "")
    assert "xmlns" not in markup(drawing())  # inside a page it needs none


@pytest.fixture
def series_run(write_run: WriteRun, manifest: dict[str, Any]) -> Callable[..., Path]:
    """A run over three steps: two attacks, one that refuses, a floor, and an accuracy that is unknown at the first."""

    def make(name: str = "soteria", attack: str = "ig", **changes: Any) -> Path:
        cells = []
        for step in STEPS:
            scenario = f"{name}-step{step}"
            noise = {attack: 0.05 + step / 50, "dlg": 0.2, "floor: mean image": 0.4}
            folder = write_run(noise, scenario=scenario)
            write_run({"bias": 0.4}, scenario=scenario, status="refused", reason="no layer")
            victim = {"architecture": "lenet", "test_accuracy": step / 20 if step else None}
            cells.append(manifest["cells"][0] | {"scenario": scenario, "attack": attack, "victim": victim})
        series = {name: {"variable": "step", "scenarios": {f"{name}-step{step}": step for step in STEPS}}}
        RunFolder(folder).save_manifest(manifest | {"series": series, "reference": "dlg", "cells": cells} | changes)
        return folder

    return make


def test_the_page_begins_with_the_series(series_run: Callable[..., Path]) -> None:
    folder = series_run()
    page = Page(write_report(folder))
    assert page.text.index("soteria: PSNR against training step of the victim") < page.text.index("What leaks")
    assert [words for words in ("step 0", "step 2", "step 10") if words not in page.text] == []
    assert "test accuracy, % – 10.0 50.0" in page.text
    assert "bias refused refused refused" in page.text
    folded = [attributes for attributes in page.find("details") if attributes.get("class") == "scenario"]
    assert len(folded) == 3
    assert all("open" not in attributes for attributes in folded)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert {str(link["href"])[1:] for link in page.find("a")} <= set(ids)
    findings = [page.text.index(f"soteria-step{step} :") for step in STEPS]
    assert findings == sorted(findings)  # by value, not by name
    assert not re.search(r"url\(|@import|https?:", page.source)


def test_the_figure_is_a_file_too(series_run: Callable[..., Path]) -> None:
    folder = series_run()
    write_report(folder)
    root = ET.parse(folder / "series-soteria.svg").getroot()  # noqa: S314 - our own drawing
    names = [element.text for element in root.iter() if element.get("class") == "key"]
    assert sorted(filter(None, names)) == ["best floor", "dlg", "ig"]  # bias refused


def test_the_strip_shows_the_median_of_the_best_attack_at_each_value(series_run: Callable[..., Path]) -> None:
    folder = series_run()
    page = Page(write_report(folder))
    hints = [str(image["alt"]) for image in page.find("img")]
    records = read_records(folder / "records.jsonl")
    medians = []
    for step in STEPS:
        scores = {
            attack: sorted(
                (r.psnr, r.image_id) for r in records if (r.scenario, r.attack) == (f"soteria-step{step}", attack)
            )
            for attack in ("ig", "dlg")
        }
        best = max(scores, key=lambda attack: sum(psnr for psnr, _ in scores[attack]))
        medians.append(scores[best][5][1])  # the lower one of twelve
    assert hints[:3] == [f"private image {image}" for image in medians]
    assert [hint.split(":")[0] for hint in hints[3:9]] == [
        f"{attack}, {image}" for attack in ("dlg", "ig") for image in medians
    ]


def test_the_reference_of_the_suite_is_paired(series_run: Callable[..., Path]) -> None:
    folder = series_run()
    text = Page(write_report(folder)).text
    assert text.count("dlg against each other attack on the same images") == 3
    lines = (folder / "paired.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [[f"soteria-step{step}", "dlg", "ig", "12"] for step in STEPS]


def test_a_series_of_which_nothing_is_recorded_yet(series_run: Callable[..., Path]) -> None:
    entry = {"variable": "step", "scenarios": {"later-step0": 0, "soteria-step2": 2}}
    page = Page(write_report(series_run(series={"later": entry, "never": {**entry, "scenarios": {"x": 0}}})))
    assert "later: PSNR against" in page.text  # of one value
    assert "never: PSNR" not in page.text


def test_hostile_names_of_series_stay_text(series_run: Callable[..., Path]) -> None:
    folder = series_run(name=HOSTILE, attack=HOSTILE)
    page = Page(write_report(folder))
    assert not page.find("script")
    assert all(str(image["src"]).startswith("data:") for image in page.find("img"))
    [file] = folder.glob("series-*.svg")
    root = ET.parse(file).getroot()  # noqa: S314 - our own drawing
    assert not [element for element in root.iter() if element.tag.endswith("script")]
