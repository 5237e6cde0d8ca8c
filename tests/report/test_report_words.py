"""What the report says in words and prints in the terminal."""

import io
from collections.abc import Callable
from typing import Any, get_args

import pytest
from rich.console import Console

from gibench.report import print_table, summarize, words
from gibench.report.words import amount, finding, listing, percent, signed, threat_model_in_words
from gibench.types import Record, ThreatModel

MakeRecord = Callable[..., Record]
FLAGS = {name: get_args(field.annotation) for name, field in ThreatModel.model_fields.items()}


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values in FLAGS.items() for value in values])
def test_every_flag_of_the_threat_model_is_said(flag: str, value: str) -> None:
    flags = {"victim": "initial", "batch_norm": "absent", "update": "fedavg", "defense": "known", flag: value}
    said = threat_model_in_words(ThreatModel.model_validate(flags).model_dump())
    others = [
        threat_model_in_words(ThreatModel.model_validate(flags | {flag: other}).model_dump())
        for other in FLAGS[flag]
        if other != value
    ]
    assert f"{flag}: " not in said
    assert said not in others


def test_a_flag_that_is_new_is_written_as_it_stands() -> None:
    assert threat_model_in_words({"victim": "initial", "weather": "bad"}) == (
        "the model has its initial weights; weather: bad."
    )


def records_of(record: MakeRecord, attack: str, scores: list[float]) -> list[Record]:
    return [record(attack, update, 0, psnr) for update, psnr in enumerate(scores)]


def said(records: list[Record]) -> str:
    return finding(summarize(records), success_psnr=20.0).replace("\u00a0", " ")


FLOOR = [12.0 + 0.1 * (i % 5) for i in range(20)]


def test_findings(record: MakeRecord) -> None:
    floor = records_of(record, "floor: mean image", FLOOR)
    strong = records_of(record, "ig", [value + 10 for value in FLOOR])
    weak = records_of(record, "dlg", [value - 2 for value in FLOOR])
    bimodal = records_of(record, "idlg", [30.0 if i % 4 == 0 else 4.0 for i in range(20)])
    assert said(floor) == "No attack is recorded yet."
    assert said(strong).endswith("on average; no floor is recorded yet to hold it against.")
    assert said(floor + strong + weak) == (
        "ig reaches 22.2 dB [22.1, 22.3] on average, 10.0 dB [10.0, 10.0] above the best floor (mean image, 12.2 dB), "
        "and recovers 100 % of 20 images to 20 dB or better; no leak measured with dlg."
    )
    assert said(floor + weak) == (
        "No leak measured: dlg reaches 10.2 dB [10.1, 10.3] on average, as the best attack, and does not clear its "
        "floor (mean image, 12.2 dB)."
    )
    assert said(floor + bimodal).startswith("idlg recovers 25 % of 20 images to 20 dB or better, although its mean of")
    assert "nothing is concluded" in said(floor + records_of(record, "ig", [40.0]))
    tie = said(floor + strong + records_of(record, "copy", [value + 10 for value in FLOOR]))
    assert "is within noise of it" in tie
    refusal = [record("bias", update, 0, 12.0, status="refused") for update in range(20)]
    assert said(floor + strong + refusal).endswith("20 dB or better; bias cannot attack this victim.")
    assert said(floor + refusal) == "bias cannot attack this victim; the records say why."
    inferred = [record("idlg", update, 0, 12.0, label=1, label_inferred=int(update < 15)) for update in range(20)]
    assert said(floor + inferred).endswith("of the labels idlg infers 75 %.")


def test_numbers() -> None:
    assert [signed(-0.04), signed(-1.25), signed(0.123, 2)] == ["0.0", "−1.2", "0.12"]
    assert [percent(share) for share in (0, 0.001, 0.37, 0.999, 1, None)] == ["0", "<1", "37", ">99", "100", "–"]
    assert [amount(value) for value in (0, 0.004, 0.123, 3.44, 56.2, 4800)] == [
        "0",
        "<0.01",
        "0.12",
        "3.4",
        "56",
        "4,800",
    ]
    assert [listing(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


def printed(records: list[Record]) -> str:
    text = io.StringIO()
    print_table(summarize(records), Console(file=text, width=200))
    return text.getvalue()


def test_what_the_training_of_an_attack_cost() -> None:
    cost: dict[str, Any] = {
        "seconds": 1234.0,
        "cpu_seconds": 900.0,
        "seconds_before": 0.0,
        "images": 50000,
        "examples": 300000,
        "steps": 1170,
        "devices": ["cpu", "NVIDIA H100"],
    }
    said = (
        "1,234 s (900 s of processors) of training on 50,000 images, 300,000 examples in 1,170 steps, "
        "on cpu and NVIDIA H100"
    )
    assert words.offline([]) == ""
    assert words.offline([cost]).replace("\u00a0", " ") == said
    both = words.offline([cost | {"seconds_before": None}, {"seconds": None}]).replace("\u00a0", " ")
    assert both == f"{said}, from weights whose training is not recorded; weights whose training is not recorded"


def test_the_table_fits_100_columns_and_says_who_clears_the_floor(record: MakeRecord) -> None:
    records = records_of(record, "floor: mean image", FLOOR)
    records += records_of(record, "ig", [100.0] * 20)
    records += records_of(record, "dlg", [value - 2 for value in FLOOR])
    records += [
        record("an attack with a name that is much too long", update, 0, 15.0, seconds=12345) for update in range(20)
    ]
    text = printed(records)
    lines = text.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    order = [line.split()[0] for line in lines[2:] if line.strip()]
    assert order.index("ig") < order.index("an") < order.index("dlg") < order.index("mean")
    assert "100.0 [100.0, 100.0]" in text
    assert "no leak" in next(line for line in lines if line.startswith("dlg"))
    assert "no leak" not in next(line for line in lines if line.startswith("ig"))


def test_names_are_not_markup_in_the_terminal(record: MakeRecord) -> None:
    records = records_of(record, "[red]x[/red]", [15.0, 16.0])
    assert "[red]x[/red]" in printed(records)


def test_a_precision_that_does_not_stand_for_32_true_is_marked(record: MakeRecord) -> None:
    mixed = [record("ig", update, precision="bf16-mixed", parity="untested") for update in range(3)]
    assert "ig †" in printed(mixed)
    assert "† bf16-mixed was not held against 32-true" in " ".join(printed(mixed).split())
    failed = [found.model_copy(update={"parity": "outside"}) for found in mixed]
    assert "bf16-mixed is not within 0.5 dB of 32-true" in " ".join(printed(failed).split())
    held = [found.model_copy(update={"parity": "within"}) for found in mixed]
    assert "†" not in printed(held)
