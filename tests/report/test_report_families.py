"""Families: points at their costs, answers that hold against a slow reference, and a page that stays whole without."""

import csv
import math
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from test_report_page import HOSTILE, Page

from gibench.metrics import Interval
from gibench.records import RunFolder
from gibench.report import write_report
from gibench.report.budgets import Budget, budgets, decades_of, sentence
from gibench.report.families_chart import CostAxis, Level, Line, Point, common_ticks, cost_in_words, draw_panel
from gibench.report.summary import Row, group, summarize
from gibench.types import Record

MakeRecord = Callable[..., Record]
FAMILIES = {"no prior": ["ig-300", "ig-3000"], "inverter": ["inverter"], "hybrid": ["hybrid-100", "hybrid-1000"]}
COSTS = {"ig-300": 300.0, "ig-3000": 3000.0, "inverter": 0.0, "hybrid-100": 100.0, "hybrid-1000": 1000.0}
MEANS = {"ig-300": 15.0, "ig-3000": 22.0, "inverter": 17.0, "hybrid-100": 17.2, "hybrid-1000": 20.0}

REST = {"cpu_seconds": None, "seconds_before": 0.0, "examples": 90, "steps": 3, "devices": ["cpu"]}


def of_evaluations(row: Row) -> float:
    return row.gradient_evaluations


def found(svg: ET.Element, tag: str, style: str) -> list[ET.Element]:
    return [element for element in svg.iter(tag) if style in (element.get("class") or "").split()]


def number(element: ET.Element, name: str) -> float:
    return float(element.attrib[name])


def line(name: str, color: str, points: list[tuple[float, float]]) -> Line:
    return Line(name, color, [Point(cost, Interval(db, db - 1, db + 2, 9, 9), "") for cost, db in points])


LINES = [
    line("no prior", "c0", [(300, 10), (3000, 14), (30000, 16)]),
    line("inverter", "c1", [(0, 18)]),
    line("hybrid", "c2", [(100, 20), (1000, 23)]),
]
LEVELS = [Level("floor: mean image", 12.5, "floor"), Level("limit: dcgan", 26.0, "limit")]


def panel(lines: list[Line] = LINES, levels: list[Level] = LEVELS) -> ET.Element:
    return draw_panel(lines, levels, common_ticks(lines, levels), label="gradient evaluations per image")


def test_points_stand_at_their_cost_and_mean() -> None:
    svg = panel()
    ticks = {element.text: number(element, "x") for element in found(svg, "text", "tick")}
    rows = {
        float(element.text or 0): number(element, "y") - 4
        for element in found(svg, "text", "tick")
        if element.get("text-anchor") == "end"
    }
    low, high = min(rows), max(rows)
    for each in LINES:
        dots = found(svg, "circle", each.color)
        bars = [bar for bar in found(svg, "line", each.color) if "interval-bar" in str(bar.get("class"))]
        assert len(dots) == len(bars) == len(each.points)
        for dot, bar, point in zip(dots, bars, each.points, strict=True):
            if point.cost:
                along = math.log10(point.cost / 100)  # from the tick of 100 to that of 1,000 is one decade
                place = ticks["100"] + along * (ticks["1,000"] - ticks["100"])
            else:
                place = ticks["0"]
            assert number(dot, "cx") == pytest.approx(place, abs=0.2)
            for name, element, db in (("cy", dot, 0), ("y1", bar, -1), ("y2", bar, 2)):
                share = ((point.psnr.value or 0) + db - low) / (high - low)
                assert number(element, name) == pytest.approx(rows[low] + share * (rows[high] - rows[low]), abs=0.2)
    assert ticks["0"] + 20 < ticks["100"]
    assert len(found(svg, "line", "break")) == 2
    heights = {style: number(found(svg, "line", style)[0], "y1") for style in ("floor", "limit")}
    assert heights["limit"] < number(found(svg, "circle", "c2")[1], "cy") < heights["floor"]


def test_lines_go_through_the_budgets_in_order() -> None:
    svg = panel()
    path = next(path for path in found(svg, "path", "c0"))
    places = [tuple(map(float, point.split())) for point in (path.get("d") or "")[1:].split("L")]
    assert places == [(number(dot, "cx"), number(dot, "cy")) for dot in found(svg, "circle", "c0")]


def test_every_line_is_named_beside_its_end() -> None:
    svg = panel()
    assert [name.text for name in found(svg, "text", "family")] == ["no prior", "inverter", "hybrid"]
    for name, each in zip(found(svg, "text", "family"), LINES, strict=True):
        end = found(svg, "circle", each.color)[-1]
        assert abs(number(name, "y") - number(end, "cy")) < 60
        assert number(name, "x") - 60 < number(end, "cx") < number(name, "x") + 8 * len(each.name) + 60
    assert {name.text for name in found(svg, "text", "mark-label")} == {"floor: mean image", "limit: dcgan"}


def test_equal_points_stand_side_by_side() -> None:
    svg = panel([line(f"{i}", f"c{i}", [(100, 20), (1000, 20.3)]) for i in range(4)])
    for point in range(2):
        places = [number(found(svg, "circle", f"c{i}")[point], "cx") for i in range(4)]
        assert min(abs(one - other) for one, other in combinations(places, 2)) > 6
        assert max(places) - min(places) < 30


def test_costs_without_zero_all_zero_and_within_a_decade() -> None:
    assert CostAxis([100, 1000], 0, 100).ticks == [100, 1000]
    assert CostAxis([0, 0], 10, 100).ticks == [0]
    assert CostAxis([0, 0], 10, 100)(0) == 10
    assert CostAxis([0.03, 0.07], 0, 100).ticks == [0.05]
    single = CostAxis([250], 0, 100)
    assert len(single.ticks) >= 1
    assert 0 < single(250) < 100
    assert [cost_in_words(cost) for cost in (0, 0.01, 500, 1e5, 1e6, 2e7)] == [
        "0", "0.01", "500", "100,000", "10⁶", "2·10⁷",
    ]  # fmt: skip


def test_decades_from_the_first_that_buys_anything_to_what_buys_all() -> None:
    assert decades_of([250, 4000]) == [1000, 10000]
    assert decades_of([100, 1000]) == [100, 1000]
    assert decades_of([0, 100, 1000]) == [10, 100, 1000]
    assert decades_of([0.003, 0.4]) == [0.01, 0.1, 1]
    assert decades_of([0.0, 0.0]) == [0]
    assert decades_of([]) == []


@pytest.fixture
def answered(record: MakeRecord) -> Callable[..., list[Budget]]:
    """The budgets of FAMILIES with given means; attacks named in `more` have another number of updates."""

    def make(means: dict[str, float] = MEANS, *, updates: int = 12, **more: int) -> list[Budget]:
        records = [
            record(attack, u, 0, mean + u / 7 + math.sin(hash_of(attack) + u), gradient_evaluations=COSTS[attack])
            for attack, mean in means.items()
            for u in range(more.get(attack, updates))
        ]
        records += [record("floor: mean image", u, 0, 10 + u / 7) for u in range(updates)]
        rows = {row.attack: row for row in summarize(records)}
        members = {label: [rows[name] for name in names if name in rows] for label, names in FAMILIES.items()}
        return budgets(members, group(records)["lenet"], of_evaluations)

    return make


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def test_each_budget_names_the_best_that_fits_and_its_ties(answered: Callable[..., list[Budget]]) -> None:
    got = answered()
    assert [budget.cost for budget in got] == [10, 100, 1000, 10000]
    assert [budget.standings[0].row.attack for budget in got] == ["inverter", "hybrid-100", "hybrid-1000", "ig-3000"]
    assert [budget.leads for budget in got] == [["inverter"], ["hybrid", "inverter"], ["hybrid"], ["no prior"]]
    assert got[0].of("no prior") is None
    at_1000 = {standing.family: standing.row.attack for standing in got[2].standings}
    assert at_1000 == {"no prior": "ig-300", "inverter": "inverter", "hybrid": "hybrid-1000"}
    told = sentence(got, unit="gradient evaluations per image", free=True).replace("\u00a0", " ")
    assert re.fullmatch(
        r"By gradient evaluations per image, up to 10: inverter \(17\.\d dB\); at 100: hybrid \(1[78]\.\d dB, "
        r"tied with inverter\); at 1,000: hybrid \(20\.\d dB\); from 10,000 on: no prior \(22\.\d dB\)\.",
        told,
    )


def test_more_budget_that_makes_it_worse_is_not_bought(answered: Callable[..., list[Budget]]) -> None:
    got = answered(MEANS | {"hybrid-1000": 12.0, "ig-3000": 11.0})
    assert [
        standing.row.attack for budget in got[1:] for standing in budget.standings if standing.family == "hybrid"
    ] == ["hybrid-100"] * 3
    assert "from 100 on: hybrid" in sentence(got, unit="s", free=True)


def test_one_answer_for_all_budgets(answered: Callable[..., list[Budget]]) -> None:
    assert sentence(answered(MEANS | {"inverter": 30.0}), unit="s", free=True).startswith(
        "By s, at any budget: inverter"
    )
    paid = {name: mean for name, mean in MEANS.items() if name in ("ig-300", "ig-3000")}
    assert "from 1,000 on: no prior (15." in sentence(answered(paid), unit="s", free=False)


def test_families_are_compared_on_the_images_that_all_have(answered: Callable[..., list[Budget]]) -> None:
    got = answered(inverter=6)
    assert {standing.psnr.images for budget in got for standing in budget.standings} == {6}
    few = sentence(answered(inverter=3), unit="s", free=True)
    assert "too few updates to tell" in few
    assert "tied" not in few
    assert sentence([], unit="s", free=False) == "By s: no image is recorded under every attack yet."


def test_what_does_not_clear_the_floor_is_said(answered: Callable[..., list[Budget]]) -> None:
    blind = sentence(answered({"inverter": 8.0, "ig-300": 17.0}), unit="s", free=True)
    assert re.search(r"up to 100: inverter \(\S+\sdB, no leak measured\); from 1,000 on: no prior \(\S+\sdB\)", blind)


@pytest.fixture
def run(tmp_path: Path, record: MakeRecord, manifest: dict[str, Any]) -> Callable[..., Path]:
    """A run of FAMILIES on two scenarios, with a limit, and an attack that refuses."""

    def make(families: Any = FAMILIES, *, costs: dict[str, Any] | None = None, rename: str = "") -> Path:
        folder = RunFolder(tmp_path / "run")
        scenarios = ("lenet", rename or "noisy")
        for scenario in scenarios:
            values = {**MEANS, "floor: mean image": 10.0, "limit: dcgan (oracle)": 25.0}
            for name, mean in values.items():
                own = {
                    "scenario": scenario,
                    "gradient_evaluations": COSTS.get(name, 0.0),
                    "seconds": COSTS.get(name, 0) / 99,
                }
                attack = rename if rename and name == "inverter" else name
                folder.records.append(
                    [record(attack, u, 0, mean + u / 7 + math.sin(hash_of(name) + u), **own) for u in range(12)]
                )
            folder.records.append([record("spear", 0, 0, 10.0, scenario=scenario, status="refused", reason="no")])
        cell = manifest["cells"][0]
        cells = [
            cell | {"scenario": scenario, "attack": name} | ({"offline": costs[name]} if name in (costs or {}) else {})
            for scenario in scenarios
            for name in (*MEANS, "spear")
        ]
        folder.save_manifest(manifest | {"cells": cells} | ({} if families is None else {"families": families}))
        return folder.path

    return make


def test_the_page_answers_for_each_scenario(run: Callable[..., Path]) -> None:
    path = write_report(run(FAMILIES | {"exact": ["spear"]}))
    page = Page(path)
    section = page.text[page.text.index("Which family at which budget?") : page.text.index("What leaks")]
    assert section.count("By gradient evaluations per image, up to 10: inverter (") == 2
    assert section.count("By seconds per image, up to") == 2
    assert section.count("Not drawn: spear (refused).") == 2
    assert "dotted lines" in section
    assert section.count("limit: dcgan") == 4
    assert section.count("none recorded") == 8
    assert not re.search(r"url\(|@import|https?:|<script", page.source)
    assert sum("families" in str(svg.get("class")) for svg in page.find("svg")) == 4
    for name in ("lenet", "noisy"):
        root = ET.parse(path.parent / f"families-{name}.svg").getroot()  # noqa: S314 - our own drawing
        classes = {style for element in root.iter() for style in (element.get("class") or "").split()}
        style = root.find("{http://www.w3.org/2000/svg}style")
        assert style is not None
        assert classes - {"tick", "axis", "families"} <= set(re.findall(r"\.([\w-]+)", style.text or ""))
        assert {"c0", "c1", "c2", "limit", "floor", "break"} <= classes


def test_tables_on_disk_hold_what_the_figure_shows(run: Callable[..., Path]) -> None:
    trained = {**REST, "weights": "f", "seconds": 60.0, "total": 90.0, "images": 45000}
    costs = {name: [trained] if name in ("inverter", "hybrid-100", "hybrid-1000") else [] for name in MEANS}
    folder = run(costs=costs)
    page = Page(write_report(folder))
    assert (
        page.text.replace("\u00a0", " ").count("90 s of training on 45,000 images") == 4
    )  # two families, two scenarios
    with (folder / "families.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [point["attack"] for point in points[:5]] == [name for names in FAMILIES.values() for name in names]
    assert [float(point["gradient_evaluations"]) for point in points[:5]] == [
        COSTS[point["attack"]] for point in points[:5]
    ]
    assert [point["offline_seconds"] for point in points[:5]] == ["0", "0", "90", "90", "90"]
    assert all(float(point["psnr_low"]) < float(point["psnr"]) < float(point["psnr_high"]) for point in points)
    with (folder / "budgets.csv").open() as file:
        lines = list(csv.DictReader(file))
    best = [each for each in lines if each["standing"] == "best"]
    assert {(each["scenario"], each["cost"]) for each in best} == {
        (scenario, cost) for scenario in ("lenet", "noisy") for cost in ("gradient_evaluations", "seconds")
    }
    own = [each for each in best if each["scenario"] == "lenet" and each["cost"] == "gradient_evaluations"]
    assert [(each["budget"], each["attack"]) for each in own] == [
        ("10", "inverter"), ("100", "hybrid-100"), ("1000", "hybrid-1000"), ("10000", "ig-3000"),
    ]  # fmt: skip
    for each in lines:
        if each["standing"] == "tied":
            assert float(each["behind_low"]) <= 0 <= float(each["behind_high"])
        elif each["standing"] == "behind":
            assert float(each["behind_low"]) > 0


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ([], "nothing"),
        ([{"weights": "f", "seconds": None}], "a training that is not recorded"),
        (
            [{**REST, "weights": "f", "seconds": 60.0, "total": None, "images": 5}],
            "more than 60 s of training on 5 images",
        ),
    ],
)
def test_offline_cost_in_words(run: Callable[..., Path], costs: list[Any], words: str) -> None:
    page = Page(write_report(run({"inverter": ["inverter"]}, costs={"inverter": costs})))
    assert words in page.text.replace("\u00a0", " ")


def test_without_families_nothing_changes(run: Callable[..., Path]) -> None:
    path = write_report(run(None))
    before = path.read_bytes()
    assert b"amil" not in before.replace(b"font-family", b"")
    assert not [file for file in path.parent.iterdir() if "families" in file.name or "budgets" in file.name]
    for nothing in ({}, {"later": ["not recorded yet"]}):
        assert write_report(run(nothing)).read_bytes() == before


def test_hostile_names_of_families_stay_text(run: Callable[..., Path]) -> None:
    folder = run({HOSTILE: [HOSTILE], "no prior": FAMILIES["no prior"]}, rename=HOSTILE)
    page = Page(write_report(folder))
    assert not page.find("script")
    assert not [image for image in page.find("img") if not str(image["src"]).startswith("data:")]
    assert len(list(folder.glob("families-*.svg"))) == 2
    for file in folder.glob("families-*.svg"):
        assert not [each for each in ET.parse(file).getroot().iter() if each.tag.endswith("script")]  # noqa: S314
