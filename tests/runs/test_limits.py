"""Limits of a suite: read, scored beside the floors, resumed, and shown as what they are."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.metrics import Limit
from gibench.records import read_records
from gibench.report import summarize, write_report
from gibench.runs.suite import cells
from tests.runs.conftest import SUITE

Command = Callable[..., tuple[int, str, str]]
NAME = "limit: blur (oracle)"


class Faded(Limit):
    """Answers the image with its contrast lowered: MSE 0.01 var or so, far above any floor."""

    calls = 0

    def __init__(self, *, contrast: float = 0.9, classes: int = 100) -> None:
        self.contrast, self.classes = contrast, classes

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        type(self).calls += 1
        return 0.5 + self.contrast * (images - 0.5)

    def check(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        if num_classes > self.classes:
            raise ConfigurationError(f"Faded has {self.classes} classes, the victim {num_classes}.")

    def fingerprint(self) -> dict[str, Any]:
        return {"class": "Faded", "contrast": self.contrast}


def suite_with(folder: Path, **settings: Any) -> Path:
    tree = copy.deepcopy(SUITE)
    tree["limits"] = {"blur": {"class_path": f"{__name__}.Faded", "init_args": settings}}
    tree["scenarios"]["mlp"]["limits"] = ["blur"]
    tree["cells"] = [{"scenario": "mlp", "attacks": ["bias"]}, {"scenario": "lenet", "attacks": ["idlg"]}]
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_limit_is_scored_beside_the_floors_and_shown_as_an_oracle(gibench: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert gibench("run", suite_with(tmp_path), "--out", out)[0] == 0
    records = read_records(out / "records.jsonl")
    limits = [record for record in records if record.attack == NAME]
    assert {record.scenario for record in limits} == {"mlp"}
    assert len(limits) == 6
    floors = {record.image_id: record.psnr for record in records if record.attack == "floor: mean image"}
    assert all(record.psnr > floors[record.image_id] for record in limits)

    rows = {(row.scenario, row.attack): row for row in summarize(records)}
    assert rows["mlp", NAME].kind == "oracle"
    assert rows["mlp", NAME].verdict is None
    assert not rows["mlp", NAME].leads
    assert rows["mlp", "bias"].floor not in (None, NAME)

    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["limits"] == {"mlp": {NAME: {"class": "Faded", "contrast": 0.9}}}
    page = (out / "report.html").read_text()
    assert NAME in page
    assert "holds the attack back" in page
    del manifest["limits"]  # a run of before there were limits
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "holds the attack back" not in write_report(out).read_text()


def test_a_limit_is_resumed_and_can_be_added_to_a_finished_run(gibench: Command, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    plain = copy.deepcopy(yaml.safe_load(suite_with(tmp_path).read_text()))
    del plain["limits"], plain["scenarios"]["mlp"]["limits"]
    suite.write_text(yaml.safe_dump(plain))
    assert gibench("run", suite, "--out", out, "--limit", 4)[0] == 0
    before = (out / "records.jsonl").read_bytes()
    Faded.calls = 0
    limited = suite_with(tmp_path)
    assert gibench("run", limited, "--out", out, "--limit", 2)[0] == 0
    assert Faded.calls == 1
    assert gibench("run", limited, "--out", out, "--limit", 4)[0] == 0
    assert Faded.calls == 2
    assert gibench("run", limited, "--out", out, "--limit", 4)[0] == 0
    assert Faded.calls == 2
    after = (out / "records.jsonl").read_bytes()
    assert after.startswith(before)
    added = [json.loads(line) for line in after.removeprefix(before).splitlines()]
    assert [record["attack"] for record in added] == [NAME] * 4


def test_another_limit_in_the_same_folder_and_one_that_does_not_fit_are_refused(
    gibench: Command, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert gibench("run", suite_with(tmp_path), "--out", out, "--limit", 1)[0] == 0
    status, _, errors = gibench("run", suite_with(tmp_path, contrast=0.8), "--out", out, "--limit", 1)
    assert status == 1
    assert f"mlp x {NAME} with other weights or settings" in errors
    status, _, errors = gibench("run", suite_with(tmp_path, classes=2), "--out", tmp_path / "other", "--limit", 1)
    assert status == 1
    assert "2 classes, the victim" in errors
    status, _, errors = gibench("run", suite_with(tmp_path, color=1), "--out", out, "--limit", 1)
    assert status == 1
    assert NAME in errors
    assert "color" in errors


@pytest.mark.parametrize(
    ("named", "message"),
    [("blur", "limits is 'blur'; list names"), (["no"], "there is no limit 'no'; defined are blur")],
)
def test_limits_that_are_no_list_or_not_defined(named: object, message: str, tmp_path: Path) -> None:
    tree = yaml.safe_load(suite_with(tmp_path).read_text())
    tree["scenarios"]["mlp"]["limits"] = named
    with pytest.raises(ConfigurationError, match=message):
        cells(tree, name="suite", size="small")


def test_a_limit_may_use_the_variables_of_its_size_and_scenario() -> None:
    limit = {"class_path": "x.Limit", "init_args": {"steps": "${steps}", "path": "g${n}.safetensors"}}
    tree = {
        "sizes": {"small": {"steps": 3}},
        "limits": {"one": limit},
        "scenarios": {"s": {"over": {"n": [1, 2]}, "data": {}, "client": {}, "limits": ["one"]}},
        "attacks": {"a": {}},
        "cells": [{"scenario": "s", "attacks": ["a"]}],
    }
    found = [cell.limits["one"]["init_args"] for cell in cells(tree, name="suite", size="small")]
    assert found == [{"steps": 3, "path": f"g{n}.safetensors"} for n in (1, 2)]
