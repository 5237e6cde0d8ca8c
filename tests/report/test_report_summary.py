"""The summary: values by hand, verdicts, the same table in any order, and a slow reference."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gibench.metrics import Interval, mean_interval
from gibench.report import Row, summarize, write_summary_csv
from gibench.report.summary import judge, kind_of
from gibench.types import Record

MakeRecord = Callable[..., Record]


def only(rows: list[Row], attack: str) -> Row:
    return next(row for row in rows if row.attack == attack)


def test_every_value_of_a_row_by_hand(record: MakeRecord) -> None:
    records = [
        record("ig", 0, 0, 10.0, ssim=0.1, lpips_alex=0.5, label=3, label_inferred=4, psnr_oracle=12.0),
        record("ig", 0, 1, 20.0, ssim=0.3, lpips_alex=0.3, label=4, label_inferred=4, psnr_oracle=20.0, seconds=0.5),
        record("ig", 1, 0, 60.0, ssim=0.9, lpips_alex=0.1, label=5, label_inferred=5),
        record("ig", 1, 1, 14.0, ssim=0.3, lpips_alex=0.3, label=6, status="diverged", gradient_evaluations=100.0),
    ]
    [row] = summarize(records)
    assert (row.scenario, row.attack, row.kind, row.images, row.updates) == ("lenet", "ig", "attack", 4, 2)
    assert row.psnr == mean_interval([10, 20, 60, 14], ["u000", "u000", "u001", "u001"])
    assert row.psnr.value == 26.0
    assert row.psnr_median == 17.0
    assert row.ssim == pytest.approx(0.4)
    assert row.lpips_alex == pytest.approx(0.3)
    assert row.lpips_vgg is None
    assert row.mse == pytest.approx((10**-1 + 10**-2 + 10**-6 + 10**-1.4) / 4)
    assert (row.success.value, row.exact, row.failures) == (0.5, 0.25, 1)
    assert row.oracle_gap == 1.0  # 2 dB and 0 dB, over the images that have candidates
    assert row.label_accuracy  # update 0 holds {3, 4} and is told {4, 4}; update 1 {5, 6} and is told {5}
    assert (row.label_accuracy.value, row.label_accuracy.clusters) == (0.5, 2)
    assert row.label_precision
    assert row.label_recall
    assert (row.label_precision.value, row.label_recall.value, row.label_existence) == (1.0, 0.5, None)
    [counted] = summarize(records, num_classes={"lenet": 10})
    assert counted.label_existence
    assert counted.label_existence.value == pytest.approx(0.9)
    assert row.gradient_evaluations == 250.0
    assert row.seconds == 1.25
    assert (row.floor, row.margin, row.verdict, row.leads) == (None, None, None, True)


def test_a_metric_that_one_image_lacks_has_no_mean(record: MakeRecord) -> None:
    [row] = summarize([record(update=0, ssim=None), record(update=1, ssim=0.5)])
    assert row.ssim is None
    assert row.lpips_alex == 0.25


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ig", "attack"),
        ("ig (wrong update)", "control"),
        ("floor: mean image", "floor"),
        ("floor: ig prior alone", "floor"),
        ("floor: nearest image (oracle)", "oracle"),
    ],
)
def test_names_say_what_an_attack_is(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_the_floor_is_the_best_one_that_applies_on_the_images_of_the_attack(record: MakeRecord) -> None:
    records = [record("ig", update, 0, 16.0 + update) for update in range(4)]
    records += [record("dlg", update, 0, 30.0) for update in range(4)]
    for update in range(8):  # on all eight the mean image is better, on the four of the attacks the class mean
        records.append(record("floor: mean image", update, 0, 12.0 if update < 4 else 20.0))
        records.append(record("floor: class mean", update, 0, 13.0))
        records.append(record("floor: nearest image (oracle)", update, 0, 50.0))
        records.append(record("floor: ig prior alone", update, 0, 14.0))
    rows = summarize(records)
    ig, dlg = only(rows, "ig"), only(rows, "dlg")
    assert (ig.floor, dlg.floor) == ("floor: ig prior alone", "floor: class mean")
    assert ig.margin is not None
    assert dlg.margin is not None
    assert (ig.margin.value, dlg.margin.value) == (3.5, 17.0)
    assert only(rows, "floor: mean image").margin is None


def test_verdicts(record: MakeRecord) -> None:
    records = []
    for update, place in enumerate(np.random.default_rng(0).permutation(40)):
        floor = 10 + place / 10
        records.append(record("floor: mean image", update, 0, floor))
        records.append(record("clears", update, 0, floor + 0.1 + 0.01 * (update % 3)))
        records.append(record("does not", update, 0, floor + (0.5 if update % 2 else -0.5)))
        records.append(record("solves some", update, 0, 40.0 if update % 5 == 0 else 4.0))
        records.append(record("is worse", update, 0, floor - 3))
    records.append(record("too few", 0, 0, 40.0))
    rows = summarize(records)
    assert {row.attack: row.verdict for row in rows} == {
        "clears": "leak",  # by less than the interval of its own mean is wide: the pairs decide
        "does not": "no leak measured",
        "solves some": "leak in part",
        "is worse": "no leak measured",
        "too few": "too few updates",
        "floor: mean image": None,
    }
    clears = only(rows, "clears")
    floor = only(rows, "floor: mean image")
    assert clears.psnr.low is not None
    assert floor.psnr.high is not None
    assert clears.psnr.low < floor.psnr.high


def test_an_interval_that_touches_zero_is_no_leak() -> None:
    touches = Interval(0.5, 0.0, 1.0, images=10, clusters=10)
    assert judge(touches, touches) == "no leak measured"


def test_attacks_within_noise_lead_together(record: MakeRecord) -> None:
    records = []
    for update in range(30):
        records.append(record("a", update, 0, 20.0 + (update % 7)))
        records.append(record("b", update, 0, 20.0 + (update * 3 % 7)))
        records.append(record("c", update, 0, 18.0 + (update % 7)))
        records.append(record("floor: mean image", update, 0, 30.0))
    assert {row.attack for row in summarize(records) if row.leads} == {"a", "b"}


@settings(max_examples=25)
@given(data=st.data())
def test_it_agrees_with_loops(data: st.DataObject, record: MakeRecord) -> None:
    scores = data.draw(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 100)), min_size=1, max_size=12))
    labels = data.draw(st.lists(st.integers(0, 2), min_size=2 * len(scores), max_size=2 * len(scores)))
    records = [
        record("ig", update, i, psnr, label=labels[2 * i], label_inferred=labels[2 * i + 1])
        for i, (update, psnr) in enumerate(scores)
    ]
    [row] = summarize(records, success_psnr=30.0)
    recovered = named = 0
    for update in {update for update, _ in scores}:
        guesses = [labels[2 * i + 1] for i in range(len(scores)) if scores[i][0] == update]
        for i in range(len(scores)):
            if scores[i][0] == update and labels[2 * i] in guesses:
                guesses.remove(labels[2 * i])
                named += 1
    for _, psnr in scores:
        recovered += psnr >= 30
    assert row.psnr.value == pytest.approx(sum(psnr for _, psnr in scores) / len(scores))
    assert row.success.value == pytest.approx(recovered / len(scores))
    assert row.label_accuracy
    assert row.label_accuracy.value == pytest.approx(named / len(scores))
    assert row.updates == len({update for update, _ in scores})


def suite(record: MakeRecord) -> list[Record]:
    draw = np.random.default_rng(1)
    return [
        record(attack, update, position, draw.uniform(5, 40), scenario=scenario, seconds=draw.random())
        for scenario in ("lenet", "mlp")
        for attack in ("ig", "dlg", "floor: mean image")
        for update in range(5)
        for position in range(2)
    ]


def test_the_order_of_records_does_not_matter(record: MakeRecord, tmp_path: Path) -> None:
    records = suite(record)
    write_summary_csv(summarize(records), tmp_path / "a.csv")
    shuffled = [records[i] for i in np.random.default_rng(2).permutation(len(records))]
    write_summary_csv(summarize(shuffled), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_continued_run_differs_in_the_last_column_only(record: MakeRecord, tmp_path: Path) -> None:
    records = suite(record)
    write_summary_csv(summarize(records), tmp_path / "a.csv")
    continued = [found.model_copy(update={"seconds": 2 * found.seconds}) for found in records]
    write_summary_csv(summarize(continued), tmp_path / "b.csv")
    once, again = [list(csv.reader((tmp_path / name).open())) for name in ("a.csv", "b.csv")]
    assert once[0][-1] == "seconds"
    assert [line[:-1] for line in once] == [line[:-1] for line in again]
    assert once != again


def test_the_table_on_disk(record: MakeRecord, tmp_path: Path) -> None:
    records = [record("ig", update, 0, 10.0 + 10 * update) for update in range(3)]
    records += [record("floor: mean image", update, 0, 12.0) for update in range(3)]
    rows = summarize(records)
    write_summary_csv(rows, tmp_path / "summary.csv")
    floor, ig = csv.DictReader((tmp_path / "summary.csv").open())
    assert list(ig) == [
        "scenario", "attack", "kind", "images", "updates", "psnr", "psnr_low", "psnr_high", "psnr_median", "ssim",
        "lpips_alex", "lpips_vgg", "mse", "success", "success_low", "success_high", "exact", "failures", "remarks",
        "oracle_gap", "label_accuracy", "label_accuracy_low", "label_accuracy_high", "label_precision",
        "label_precision_low", "label_precision_high", "label_recall", "label_recall_low", "label_recall_high",
        "label_existence", "label_existence_low", "label_existence_high", "psnr_mixture", "mixtures",
        "psnr_class_mean", "class_means", "bad_pixels", "tv_ratio", "identified", "floor", "margin", "margin_low",
        "margin_high", "verdict", "leads", "precision", "parity", "gradient_evaluations", "seconds",
    ]  # fmt: skip
    assert (ig["attack"], ig["kind"], ig["images"], ig["psnr"], ig["psnr_median"]) == ("ig", "attack", "3", "20", "20")
    assert ig["psnr_low"] == f"{only(rows, 'ig').psnr.low:.6g}"
    assert (ig["lpips_vgg"], ig["label_accuracy"], ig["leads"]) == ("", "", "yes")
    assert (ig["floor"], ig["margin"]) == ("floor: mean image", "8")
    assert (floor["margin"], floor["verdict"], floor["leads"]) == ("", "", "no")


def test_no_records_make_an_empty_table(tmp_path: Path) -> None:
    assert summarize([]) == []
    write_summary_csv([], tmp_path / "summary.csv")
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1


def test_an_attack_that_refused_has_recovered_nothing(record: MakeRecord) -> None:
    """Its rows score as the floor, which may reach 20 dB on an easy image; that is not the attack's doing."""
    floor = [record("floor: mean image", update, 0, psnr) for update, psnr in enumerate([12.0, 25.0, 61.0])]
    refused = [
        record("bias", update, 0, psnr, status="refused", reason="no layer")
        for update, psnr in enumerate([12.0, 25.0, 61.0])
    ]
    row = only(summarize(floor + refused), "bias")
    assert (row.success.value, row.exact, row.failures, row.verdict) == (0.0, 0.0, 3, "refused")
    diverged = [record("dlg", 0, 0, 61.0, status="diverged"), record("dlg", 1, 0, 30.0)]
    row = only(summarize(floor + diverged), "dlg")
    assert (row.success.value, row.exact) == (0.5, 0.0)
    assert row.verdict != "refused"


def test_a_precision_is_as_good_as_its_worst_image(record: MakeRecord, tmp_path: Path) -> None:
    mixed = {"precision": "bf16-mixed", "parity": "within"}
    rows = summarize([record(update=0, **mixed), record(update=1, **mixed | {"parity": "untested"})])
    write_summary_csv(rows, tmp_path / "summary.csv")
    [line] = csv.DictReader((tmp_path / "summary.csv").open())
    assert (line["precision"], line["parity"]) == ("bf16-mixed", "untested")
    [row] = summarize([record(update=0, parity="outside"), record(update=1, parity="untested")])
    assert row.parity == "outside"


def test_what_searches_ran_into_is_counted_without_its_numbers(record: MakeRecord) -> None:
    told = ["still moving after 60 steps", "still moving after 12 steps", None, "singular in 1,203 of 4 steps"]
    records = [record(update=update, remark=words) for update, words in enumerate(told)]
    [row] = summarize(records)
    assert row.remarks == "2 of 4: still moving after .. steps; 1 of 4: singular in .. of .. steps"
    [quiet] = summarize([record(update=update) for update in range(3)])
    assert quiet.remarks is None
