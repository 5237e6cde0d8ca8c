"""Paired differences: by hand, who is paired with whom, and the table on disk."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from gibench.metrics import Interval, mean_interval
from gibench.report import summarize
from gibench.report.paired import Pair, pairs, write_paired_csv
from gibench.report.summary import group
from gibench.types import Record

MakeRecord = Callable[..., Record]


def paired(records: list[Record], reference: str | None = None) -> list[Pair]:
    [attacks] = group(records).values()
    return pairs(summarize(records), attacks, reference=reference)


def scores(record: MakeRecord, attack: str, values: list[float], **fields: object) -> list[Record]:
    """Two images per update."""
    return [record(attack, i // 2, i % 2, psnr, **fields) for i, psnr in enumerate(values)]


def test_a_difference_is_paired_by_image_and_clustered_by_update(record: MakeRecord) -> None:
    high = [30.0, 10.0, 25.0, 12.0, 21.0, 22.0, 21.0, 22.0, 21.0, 22.0]
    low = [28.0, 11.0, 20.0, 9.0, 20.0, 20.0, 20.0, 20.0, 20.0, 20.0]
    [pair] = paired(scores(record, "b", low) + scores(record, "a", high))
    assert (pair.scenario, pair.attack, pair.other) == ("lenet", "a", "b")
    updates = [f"u{index // 2}" for index in range(10)]
    assert pair.difference == mean_interval([2.0, -1.0, 5.0, 3.0, *[1.0, 2.0] * 3], updates)
    assert pair.verdict == "better"  # in each of the updates on average


def test_only_common_images_count(record: MakeRecord) -> None:
    records = scores(record, "a", [30.0] * 6) + scores(record, "b", [20.0] * 4)
    [pair] = paired(records)
    assert (pair.difference.value, pair.difference.images, pair.difference.clusters) == (10.0, 4, 2)
    [pair] = paired([record("a", 0, 0, 30.0), record("b", 1, 0, 20.0)])
    assert pair.verdict == "on no common image"


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((0.1, 2.0), "better"),
        ((-2.0, -0.1), "worse"),
        ((-0.1, 2.0), "a tie within noise"),
        ((0.0, 0.0), "a tie within noise"),
        ((None, None), "too few updates"),
    ],
)
def test_verdicts(ends: tuple[float | None, float | None], words: str) -> None:
    assert Pair("s", "a", "b", Interval(1.0, *ends, images=5, clusters=5)).verdict == words
    assert Pair("s", "a", "b", Interval(1.0, *ends, images=4, clusters=4)).verdict == "too few updates"


def test_the_best_attack_is_paired_unless_a_reference_is_named(record: MakeRecord) -> None:
    records = [
        found
        for attack, level in (("a", 20.0), ("b", 30.0), ("c", 10.0), ("a (wrong update)", 40.0), ("floor: mean", 50.0))
        for found in scores(record, attack, [level, level + 1])
    ] + scores(record, "refusing", [60.0, 60.0], status="refused", reason="no layer")
    assert [(pair.attack, pair.other) for pair in paired(records)] == [("b", "a"), ("b", "c")]
    assert [(pair.attack, pair.other) for pair in paired(records, "c")] == [("c", "b"), ("c", "a")]
    for absent in ("elsewhere", "refusing", "a (wrong update)"):
        assert [pair.attack for pair in paired(records, absent)] == ["b", "b"]


def test_one_attack_has_no_pair(record: MakeRecord) -> None:
    assert paired(scores(record, "a", [1.0, 2.0]) + scores(record, "floor: mean", [1.0, 2.0])) == []


def test_the_table_on_disk(record: MakeRecord, tmp_path: Path) -> None:
    records = [record(attack, 0, 0, psnr) for attack, psnr in (("a", 20.123456789), ("b", 10.0))]
    write_paired_csv(paired(records), tmp_path / "paired.csv")
    [line] = csv.DictReader((tmp_path / "paired.csv").open())
    assert line == {
        "scenario": "lenet", "attack": "a", "other": "b", "images": "1", "difference": "10.1235", "low": "", "high": "",
    }  # fmt: skip
    write_paired_csv([], tmp_path / "paired.csv")
    assert (tmp_path / "paired.csv").read_text() == "scenario,attack,other,images,difference,low,high\n"
