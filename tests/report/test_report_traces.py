"""Traces: read as they were written, when an attack has arrived, and what the page shows of it and of its errors."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gibench.errors import RecordError
from gibench.records import RunFolder
from gibench.report import summarize, write_report, write_summary_csv
from gibench.report.traces import Point, Speed, collect_traces, read_trace, speed, trace_path, write_trace
from gibench.types import Record

MakeRecord = Callable[..., Record]
WriteRun = Callable[..., Path]


def trace(*psnr: float, answer: float, images: int = 4) -> list[Point]:
    points = [Point(2**power, False, images, value, 0.5, 2.0, 0.25) for power, value in enumerate(psnr)]
    return [*points, Point(points[-1].step, True, images, answer, 0.5, None, None)]


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    points = trace(6.0, 12.5, answer=12.25)
    write_trace(points, tmp_path / "traces" / "a.csv")
    assert read_trace(tmp_path / "traces" / "a.csv") == points
    assert read_trace(tmp_path / "none.csv") == []


@pytest.mark.parametrize("content", ["step,psnr\n1,2\n", "step,answer,images,psnr\nx,no,1,2\n", "\x00"])
def test_what_is_no_trace_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    if content == "\x00":
        assert read_trace(path) == []  # a header without lines
        return
    with pytest.raises(RecordError, match=r"a\.csv is no trace"):
        read_trace(path)


@pytest.mark.parametrize(
    ("psnr", "answer", "arrived"),
    [
        ((6.0, 9.0, 11.5, 12.0), 12.2, 4),
        ((12.0, 9.0, 11.5, 12.0), 12.2, 4),  # it came by before, and left again
        ((12.0, 12.0, 12.0, 12.0), 12.0, 1),
        ((12.0, 14.0, 9.0, 8.0), 14.0, None),  # it answers with its best iterate and ends elsewhere
        ((6.0, 9.0, 10.0, 12.0), 12.0, 8),
    ],
)
def test_an_attack_has_arrived_where_it_stays(psnr: tuple[float, ...], answer: float, arrived: int | None) -> None:
    assert speed("a", trace(*psnr, answer=answer), level=0.0) == Speed("a", 4, 8, answer, arrived, 1)


@pytest.mark.parametrize(("level", "passed"), [(6.0, 1), (8.0, 2), (9.0, 2), (9.5, 4), (12.1, 8), (13.0, None)])
def test_an_attack_passes_a_level_where_it_first_reaches_it(level: float, passed: int | None) -> None:
    points = trace(6.0, 9.0, 11.5, 12.0, answer=12.2)
    assert speed("a", points, level=level).passed == passed


@pytest.mark.parametrize(("floor", "level", "passed"), [(8.0, 9.0, [4, 2, None]), (10.0, 10.0, [4, None, None])])
def test_the_common_level_is_the_attacks_and_not_below_a_floor(
    record: MakeRecord, tmp_path: Path, floor: float, level: float, passed: list[int | None]
) -> None:
    traces = {
        "ig": trace(6, 8.5, 15.5, answer=16),
        "dlg": trace(8, 9.5, answer=9),
        "ig (wrong update)": trace(5, 4, answer=5),
    }
    for attack, points in traces.items():
        write_trace(points, trace_path(tmp_path, "lenet", attack))
    others = {"floor: mean image": floor, "floor: ig prior alone": 14.0, "floor: nearest image (oracle)": 15.0}
    rows = summarize([record(name, psnr=psnr) for name, psnr in {**dict.fromkeys(traces, 1.0), **others}.items()])
    rows.sort(key=lambda row: [*traces, *others].index(row.attack))
    found = collect_traces(tmp_path, rows, dict.fromkeys(traces, "c0"))
    assert found is not None
    assert found.level == level
    assert [each.passed for each in found.speeds] == passed
    write_trace(trace(8, 9.5, answer=9, images=7), trace_path(tmp_path, "lenet", "dlg"))
    apart = collect_traces(tmp_path, rows, dict.fromkeys(traces, "c0"))
    assert apart is not None
    assert apart.level is None
    assert [each.passed for each in apart.speeds] == [None] * 3


def film(folder: Path, attack: str) -> None:
    frames = torch.rand(20, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    course = {"steps": torch.arange(1, 21) * 10, "objective": torch.arange(20.0).flip(0) + 1}
    RunFolder(folder).save_tensors({"frames": frames, "private": frames[0], **course}, "animation", "lenet", attack)


def test_the_page_shows_every_film_and_the_traces(write_run: WriteRun, manifest: dict[str, Any]) -> None:
    folder = write_run({"ig": 0.1, "dlg": 0.3, "floor: mean image": 0.9})
    RunFolder(folder).save_manifest(manifest)
    for attack, points in {"ig": trace(6, 9, 15.5, answer=16), "dlg": trace(9, 4, answer=9, images=7)}.items():
        write_trace(points, trace_path(folder, "lenet", attack))
        film(folder, attack)
    page = write_report(folder).read_text()
    assert page.count("data:image/gif") == 2
    assert "One optimization" not in page
    assert 'aria-label="PSNR, dB against step"' in page
    assert " dB at step" not in page  # of 4 images and of 7
    assert "<td>7</td> <td>9.0</td> <td>–</td> <td>2</td>" in " ".join(page.split())
    write_trace(trace(9, 4, answer=9), trace_path(folder, "lenet", "dlg"))
    page = write_report(folder).read_text()
    assert "passes 9.0 dB at step" in page
    assert "<td>4</td> <td>9.0</td> <td>1</td> <td>–</td> <td>2</td>" in " ".join(page.split())
    for extra in range(5):
        write_run({f"extra{extra}": 0.2})
        film(folder, f"extra{extra}")
    assert write_report(folder).read_text().count("data:image/gif") == 1


def test_what_errors_look_like_in_the_table_and_on_the_page(
    write_run: WriteRun, manifest: dict[str, Any], record: MakeRecord, tmp_path: Path
) -> None:
    plain = write_run({"ig": 0.1, "floor: mean image": 0.4})
    RunFolder(plain).save_manifest(manifest)
    assert "What the errors look like" not in write_report(plain).read_text()

    told = [
        record(psnr=12.0, psnr_mixture=15.0, psnr_class_mean=11.0, bad_pixels=0.2, tv_ratio=0.5, identified=True),
        record(update=1, psnr=20.0, psnr_mixture=15.0, psnr_class_mean=None, bad_pixels=0.4, tv_ratio=1.5),
        record(update=2, psnr=14.0, psnr_mixture=15.0, bad_pixels=0.0, tv_ratio=0.7, identified=False),
        record(update=3, psnr=12.0, status="diverged"),
    ]
    (row,) = summarize(told)
    assert (row.psnr_mixture, row.psnr_class_mean, row.class_means) == (15.0, 11.0, 0.0)
    assert row.mixtures == pytest.approx(2 / 3)
    assert row.bad_pixels == pytest.approx(0.2)
    assert (row.tv_ratio, row.identified) == (0.7, 0.5)
    write_summary_csv([row], tmp_path / "summary.csv")
    with (tmp_path / "summary.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert (line["mixtures"], line["tv_ratio"], line["class_means"]) == ("0.666667", "0.7", "0")

    folder = RunFolder(tmp_path / "told")
    folder.records.append(told)
    folder.save_manifest(manifest)
    page = " ".join(write_report(folder.path).read_text().split())
    assert "What the errors look like" in page
    assert "<td>15.0</td><td>67</td>" in page
    assert "<td>0.70</td>" in page
