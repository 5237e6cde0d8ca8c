"""The section on identifiability: correlations that are right, dots where they belong, a page that stays whole."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_report_page import HOSTILE, Page

from gibench.diagnostics import Identifiability, write_identifiability
from gibench.errors import RecordError
from gibench.report import write_report
from gibench.report.identifiability import Point, draw_scatter, rank_correlation

WriteRun = Callable[..., Path]


def diagnosis(update: int = 0, bound: float = 20.0, **changes: Any) -> Identifiability:
    floors = [
        {
            "relative": noise,
            "sigma": noise,
            "directions": 5.0,
            "directions_error": 0.0,
            "bits": bound,
            "bits_error": 0.0,
            "psnr": bound - 10 * place,
            "psnr_error": 0.0,
            "psnr_unbiased": None,
        }
        for place, noise in enumerate((1e-2, 1e-1))
    ]
    given: dict[str, Any] = {
        "scenario": "lenet",
        "update_id": f"u{update:03d}",
        "labels": (3,),
        "method": "exact",
        "unknowns": 768,
        "observations": 1000,
        "null_directions": 24,
        "condition": 1e3,
        "gap": 1e9,
        "tolerance": 1e-12,
        "largest": 1.0,
        "smallest": 0.0,
        "noise_free_psnr": 30.0,
        "rms": 1.0,
        "prior_variance": 1 / 12,
        "own_noise": False,
        "floors": floors,
        "remark": None,
        "seconds": 1.0,
    }
    return Identifiability.model_validate(given | changes)


def test_the_rank_correlation_is_spearmans_and_its_interval_holds_it() -> None:
    source = np.random.default_rng(0)
    x = source.normal(size=60)
    y = x**3 + 0.5 * source.normal(size=60)
    found = rank_correlation(list(x), list(y), [f"u{i}" for i in range(60)])
    assert found.value == pytest.approx(float(spearmanr(x, y).statistic))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high <= 1  # type: ignore[operator]
    clustered = rank_correlation(list(x), list(y), [f"u{i % 6}" for i in range(60)])
    assert (clustered.images, clustered.clusters) == (60, 6)
    assert clustered.low != found.low
    exact = rank_correlation([1, 2, 3, 4], [10, 20, 30, 40], list("abcd"))
    assert (exact.value, exact.low, exact.high) == (1, 1, 1)


@pytest.mark.parametrize(
    ("x", "clusters", "why"),
    [
        ([1.0, 2.0], "ab", "too few"),
        ([1.0, 2.0, 3.0], "aaa", "too few"),
        ([1.0, 1.0, 1.0], "abc", "all the same"),
        ([], "", "too few"),
    ],
)
def test_where_nothing_can_be_said_nothing_is(x: list[float], clusters: str, why: str) -> None:
    found = rank_correlation(x, [float(i) for i in range(len(x))], list(clusters))
    assert found.value is None
    assert why in str(found.reason)


def test_dots_stand_at_bound_and_reached_psnr() -> None:
    points = [Point("lenet", diagnosis(0, 10.0), 10.0), Point("lenet", diagnosis(1, 30.0), 20.0)]
    svg = ET.fromstring(draw_scatter({"ig": points}, {"ig": "c0"}, relative=1e-2) or "")  # noqa: S314 - our own drawing
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in svg.iter("circle")]
    assert dots[0][0] < dots[1][0]
    assert dots[0][1] > dots[1][1]
    hints = [dot.findtext("title") or "" for dot in svg.iter("circle")]
    assert "bound 30.0 dB, reached 20.0 dB" in hints[1]
    line = next(line for line in svg.iter("line") if line.get("class") == "mark floor")
    assert (float(line.attrib["x1"]), float(line.attrib["y1"])) == pytest.approx(dots[0], abs=0.11)
    assert draw_scatter({"ig": points}, {"ig": "c0"}, relative=0.5) is None


def test_the_page_shows_the_diagnosis_beside_what_was_reached(write_run: WriteRun) -> None:
    folder = write_run({"ig": 0.1, "dlg": 0.3})
    assert 'id="identifiability"' not in write_report(folder).read_text()
    write_identifiability([diagnosis(u, 20.0 + u) for u in range(8)], folder / "identifiability.jsonl")
    page = Page(write_report(folder))
    assert "What the updates discard" in page.text
    assert "one over the condition" in page.text
    section = page.source.split('id="identifiability"')[1].split("</section>")[0]
    assert section.count("<circle") == 16
    assert re.search(r"<td>24</td>", section)
    assert ">–<" in section  # a constant predictor has no correlation


def test_own_noise_estimates_and_remarks_are_shown_as_such(write_run: WriteRun) -> None:
    folder = write_run({"ig": 0.1})
    unknown = dict.fromkeys(("null_directions", "condition", "gap", "tolerance", "noise_free_psnr"))
    found = [
        diagnosis(0, method="estimated", **unknown),
        diagnosis(1, scenario="noisy", own_noise=True, floors=diagnosis().floors[:1], remark=HOSTILE),
        diagnosis(2, scenario=HOSTILE),
    ]
    write_identifiability(found, folder / "identifiability.jsonl")
    page = Page(write_report(folder))
    assert "at the defense's noise" in page.text
    assert "they are estimated" in page.text
    assert HOSTILE not in page.source


def test_a_damaged_diagnosis_is_named(write_run: WriteRun) -> None:
    folder = write_run({"ig": 0.1})
    (folder / "identifiability.jsonl").write_text("{}\n")
    with pytest.raises(RecordError, match=r"identifiability.jsonl, line 1"):
        write_report(folder)
