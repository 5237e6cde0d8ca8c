"""The section on identifiability: correlations that are right, dots where they belong, a page that stays whole."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr
from test_report_page import HOSTILE, Page

from gibench.diagnostics import Identifiability, write_identifiability
from gibench.errors import RecordError
from gibench.report import write_report
from gibench.report.correlation import rank_correlation
from gibench.report.identifiability import Diagnosis, Point, collect_identifiability, draw_scatter
from gibench.report.summary import group
from gibench.types import Record

MakeRecord = Callable[..., Record]
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


def test_within_scenarios_the_differences_between_them_do_not_count() -> None:
    x = [1.0, 2.0, 3.0, 11.0, 12.0, 13.0]
    y = [3.0, 2.0, 1.0, 13.0, 12.0, 11.0]
    updates, scenarios = list("abcabc"), list("sssttt")
    pooled, within = rank_correlation(x, y, updates), rank_correlation(x, y, updates, within=scenarios)
    assert pooled.value == pytest.approx(float(spearmanr(x, y).statistic))
    assert (within.value, within.low, within.high) == pytest.approx((-1, -1, -1))
    source = np.random.default_rng(0)
    first, second = source.normal(size=(2, 9))
    names = ["s"] * 5 + ["t"] * 4
    ranks = [np.concatenate([rankdata(v[:5]) - 3, rankdata(v[5:]) - 2.5]) for v in (first, second)]
    found = rank_correlation(list(first), list(second), [f"u{i}" for i in range(9)], within=names)
    assert found.value == pytest.approx(float(np.corrcoef(*ranks)[0, 1]))
    alone = rank_correlation([1, 2, 3], [1, 2, 3], list("abc"), within=list("stu"))
    assert "all the same" in str(alone.reason)


def collected(folder: Path, found: list[Identifiability], records: list[Record]) -> Diagnosis:
    write_identifiability(found, folder / "identifiability.jsonl")
    diagnosed = collect_identifiability(folder, group(records), {"ig": "c0", "dlg": "c1"})
    assert diagnosed is not None
    return diagnosed


def test_the_defenses_own_noise_is_a_predictor_of_its_own(record: MakeRecord, tmp_path: Path) -> None:
    floors = diagnosis().floors[:1]
    assumed = [diagnosis(u, 20.0 + u) for u in range(4)]
    noisy = [diagnosis(u, 50.0 - u, scenario="noisy", own_noise=True, floors=floors) for u in range(3)]
    records = [record(update=u, psnr=10.0 + u, scenario=name) for u in range(4) for name in ("lenet", "noisy")]
    plain = dict(collected(tmp_path, assumed, records).correlations)
    assert not [name for name in plain if "own noise" in name]
    mixed = dict(collected(tmp_path, [*assumed, *noisy], records).correlations)
    assert {name for name in mixed if "own noise" in name} == {
        "PSNR of least MSE at the defense's own noise",
        "bits per pixel at the defense's own noise",
    }
    for name, (found,) in mixed.items():
        if "own noise" in name:
            assert found.pooled.images == 3
        elif "at noise" in name:
            assert found == plain[name][0]
            assert found.pooled.images == 4


def test_refused_updates_count_unless_all_of_a_scenario_are(record: MakeRecord, tmp_path: Path) -> None:
    found = [diagnosis(u, 20.0 + u) for u in range(3)]
    ig = [record(update=u, psnr=psnr) for u, psnr in enumerate((20.0, 22.0))]
    ig.append(record(update=2, psnr=9.0, status="refused", reason="no"))
    dlg = [record("dlg", u, status="refused", reason="no") for u in range(3)]
    shown = collected(tmp_path, found, [*ig, *dlg])
    assert shown.attacks == ("ig",)
    assert shown.lines[0].reached == {"ig": pytest.approx(17.0)}


def test_dots_stand_at_bound_and_reached_psnr() -> None:
    points = [Point("lenet", diagnosis(0, 10.0), 10.0), Point("lenet", diagnosis(1, 30.0), 20.0)]
    svg = ET.fromstring(draw_scatter({"ig": points}, {"ig": "c0"}, relative=1e-2) or "")  # noqa: S314 - our own drawing
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in svg.iter("circle")]
    assert dots[0][0] < dots[1][0]
    assert dots[0][1] > dots[1][1]
    hints = [dot.findtext("title") or "" for dot in svg.iter("circle")]
    assert "least MSE 30.0 dB, reached 20.0 dB" in hints[1]
    line = next(line for line in svg.iter("line") if line.get("class") == "mark floor")
    assert (float(line.attrib["x1"]), float(line.attrib["y1"])) == pytest.approx(dots[0], abs=0.11)
    assert draw_scatter({"ig": points}, {"ig": "c0"}, relative=0.5) is None
    own = [Point("noisy", diagnosis(0, own_noise=True), 10.0)]
    assert draw_scatter({"ig": own}, {"ig": "c0"}, relative=1e-2) is None


def test_the_page_shows_the_diagnosis_beside_what_was_reached(write_run: WriteRun) -> None:
    folder = write_run({"ig": 0.1, "dlg": 0.3})
    assert 'id="identifiability"' not in write_report(folder).read_text()
    write_identifiability([diagnosis(u, 20.0 + u) for u in range(8)], folder / "identifiability.jsonl")
    page = Page(write_report(folder))
    assert "What the updates discard" in page.text
    assert "one over the condition" in page.text
    assert "a mean of PSNRs may exceed it" in page.text
    assert "pooled" not in page.text  # there is one scenario only
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
    assert "it is estimated" in page.text
    assert "pooled over scenarios; mostly differences between scenarios" in page.text
    assert HOSTILE not in page.source


def test_a_damaged_diagnosis_is_named(write_run: WriteRun) -> None:
    folder = write_run({"ig": 0.1})
    (folder / "identifiability.jsonl").write_text("{}\n")
    with pytest.raises(RecordError, match=r"identifiability.jsonl, line 1"):
        write_report(folder)
