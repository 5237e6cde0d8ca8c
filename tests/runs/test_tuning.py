"""`gibench tune`: equal budgets, the tune split alone, resumption after a kill, and what a run makes of the choice."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml

from gibench.attacks import Attack
from gibench.data import ImageDataModule
from gibench.data.collection import Collection, Pool, divide
from gibench.errors import ConfigurationError, RefusalError
from gibench.metrics import Floors, psnr
from gibench.runs.configuration import load
from gibench.runs.suite import cells
from gibench.runs.tuned import options, purpose
from gibench.types import Observation, Reconstruction

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
TRIALS = 5


class Sealed(ImageDataModule):
    """Small random images whose score split must not be touched."""

    name = "sealed"

    def collect(self) -> Collection:
        pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
        ids = tuple(f"sealed/{index:02d}" for index in range(60))
        whole = divide(pixels, np.arange(60, dtype=np.int64) % 10, ids, None)
        pools: dict[Any, Pool] = SealedPools({name: pool for name, pool in whole.pools.items() if name != "score"})
        return Collection(whole.image_shape, whole.num_classes, None, pools)


class SealedPools(dict[Any, Pool]):
    def __missing__(self, name: str) -> Pool:
        raise AssertionError(f"the {name} split was touched")


class Gray(Attack):
    """Answers one gray, or nothing that is a number, and counts how often it was asked."""

    asked = 0

    def __init__(self, *, level: float = 0.3, fails: bool = False, refuses: bool = False, calls: int = 1) -> None:
        super().__init__()
        self.level, self.fails, self.refuses = level, fails, refuses

    def forward(self, observation: Observation) -> Reconstruction:
        Gray.asked += 1
        if self.refuses:
            raise RefusalError("not this one.")
        updates = observation.updates
        shape = (updates, observation.batch_size or 1, *observation.image_shape)
        return Reconstruction(
            images=torch.full(shape, torch.nan if self.fails else self.level),
            labels=None,
            objective=torch.zeros(updates),
            gradient_evaluations=torch.zeros(updates, dtype=torch.int64),
        )


class Slow(Gray):
    """A trial that can be killed in its midst."""

    def forward(self, observation: Observation) -> Reconstruction:
        time.sleep(0.1)
        return super().forward(observation)


class Impatient(Gray):
    """Somebody presses Ctrl-C during the twelfth answer, when the sampler no longer draws at random."""

    def forward(self, observation: Observation) -> Reconstruction:
        if Gray.asked == 11:
            raise KeyboardInterrupt
        return super().forward(observation)


def suite(attack: str = "test_tuning.Gray", **changes: Any) -> dict[str, Any]:
    victim = {"class_path": "helpers.small_victim"}
    threat = {"victim": "initial", "batch_norm": "absent"}
    level = {"low": 0.0, "high": 1.0}
    return {
        "name": "tiny",
        "sizes": {"small": {"trials": TRIALS, "images": 4}, "full": {"trials": 20, "images": 4}},
        "scenarios": {
            "plain": {
                "data": {"class_path": "test_tuning.Sealed", "init_args": {"updates": 6, "together": 2}},
                "client": {
                    "class_path": "gibench.clients.FedSGD",
                    "init_args": {"victim": victim, "threat_model": threat},
                },
            }
        },
        "attacks": {
            "gray": {"class_path": attack},
            "ig": {"class_path": "gibench.attacks.inverting_gradients", "init_args": {"steps": 3}},
            "bias": {"class_path": "gibench.attacks.BiasAttack"},
        },
        "cells": [{"scenario": "plain", "attacks": ["gray", "ig", "bias"]}],
        "tune": {
            "trials": "${trials}",
            "updates": "${images}",
            "spaces": {"gray": {"level": level}, "ig": {"rate": {"low": 0.01, "high": 1.0, "log": True}}},
        },
        **changes,
    }


@pytest.fixture
def tune(gibench: Command, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    """Write a suite and tune it."""

    def call(tree: dict[str, Any], *arguments: object, out: Path = tmp_path / "out") -> tuple[int, str, str]:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
        return gibench("tune", tmp_path / "tiny.yaml", "--out", out, *arguments)

    return call


def trials(folder: Path) -> list[dict[str, str]]:
    """The table of trials without its one column that time decides."""
    with (folder / "trials.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_each_attack_gets_the_same_budget_and_the_score_split_stays_sealed(tune: Command, tmp_path: Path) -> None:
    status, printed, errors = tune(suite())
    assert status == 0, errors
    rows = trials(tmp_path / "out")
    assert [row["attack"] for row in rows] == ["gray"] * TRIALS + ["ig"] * TRIALS
    assert [int(row["trial"]) for row in rows] == [*range(1, TRIALS + 1)] * 2
    first = [json.loads(row["settings"]) for row in rows if row["trial"] == "1"]
    assert first == [{"level": 0.3}, {"rate": 0.1}]
    assert f"trial {TRIALS} of {TRIALS}" in printed

    written = load(tmp_path / "out" / "tiny-small.yaml")
    gray = [row for row in rows if row["attack"] == "gray"]
    leader = max(gray, key=lambda row: float(row["psnr"]))
    chosen = written["chosen"]["plain"]["gray"]
    assert chosen["settings"] == json.loads(leader["settings"])
    assert (chosen["trial"], chosen["psnr"]) == (int(leader["trial"]), pytest.approx(float(leader["psnr"]), abs=1e-4))
    assert "bias" not in written["chosen"]["plain"]
    about = written["provenance"]
    assert (about["trials"], about["updates"], about["images"], about["split"]) == (TRIALS, 4, {"plain": 4}, "tune")
    assert about["versions"]["optuna"] == optuna.__version__
    assert len(about["split_hashes"]["plain"]) == 64


def test_the_score_is_the_mean_psnr_of_the_tune_images(tune: Command, tmp_path: Path) -> None:
    assert tune(suite())[0] == 0
    data = Sealed(updates=4, together=2, split_for_attack="tune")
    private = torch.cat([batch.images.flatten(0, 1) for batch in data.predict_dataloader()])
    for row in trials(tmp_path / "out")[:TRIALS]:
        answer = torch.full_like(private, json.loads(row["settings"])["level"])
        assert float(row["psnr"]) == pytest.approx(float(psnr(answer, private).mean()), abs=1e-6)


@pytest.mark.parametrize("how", ["fails", "refuses"])
def test_what_is_not_finite_or_refused_scores_as_the_mean_image(tune: Command, tmp_path: Path, how: str) -> None:
    tree = suite()
    tree["attacks"]["gray"]["init_args"] = {how: True, "level": 0.5}
    tree["tune"]["spaces"] = {"gray": {how: [True, False], "level": [0.5, 0.0]}}
    status, _, errors = tune(tree)
    assert status == 0, errors
    data = Sealed(updates=4, together=2, split_for_attack="tune")
    private = torch.cat([batch.images.flatten(0, 1) for batch in data.predict_dataloader()])
    mean = Floors(*data.split("prior")[:2], seed=0).mean.expand_as(private)
    assert float(trials(tmp_path / "out")[0]["psnr"]) == pytest.approx(float(psnr(mean, private).mean()), abs=1e-5)


def test_of_equal_trials_the_first_is_chosen_and_settings_are_tried_once(tune: Command, tmp_path: Path) -> None:
    tree = suite()
    tree["tune"]["spaces"] = {"gray": {"calls": [1, 2]}}
    Gray.asked = 0
    assert tune(tree)[0] == 0
    assert load(tmp_path / "out" / "tiny-small.yaml")["chosen"]["plain"]["gray"]["trial"] == 1
    tried = {row["settings"] for row in trials(tmp_path / "out")}
    assert Gray.asked == 2 * len(tried)  # two groups of updates
    assert len(trials(tmp_path / "out")) == TRIALS


def test_a_default_outside_its_space_is_not_tried(tune: Command, tmp_path: Path) -> None:
    tree = suite()
    tree["tune"]["spaces"] = {"gray": {"level": {"low": 0.5, "high": 1.0, "step": 0.25}}}
    status, printed, _ = tune(tree)
    assert status == 0
    assert {json.loads(row["settings"])["level"] for row in trials(tmp_path / "out")} <= {0.5, 0.75, 1.0}
    (line,) = [line for line in printed.splitlines() if line.split()[:2] == ["plain", "gray"]]
    assert line.split()[4] == "-"


def test_more_trials_go_on_and_fewer_use_the_first_ones(tune: Command, tmp_path: Path) -> None:
    tune(suite())
    before = trials(tmp_path / "out")
    more, fewer = suite(), suite()
    more["tune"]["trials"], fewer["tune"]["trials"] = TRIALS + 2, 2
    Gray.asked = 0
    assert tune(more)[0] == 0
    assert Gray.asked == 2 * 2  # two trials of two groups
    assert [row for row in trials(tmp_path / "out") if int(row["trial"]) <= TRIALS] == before
    assert tune(fewer)[0] == 0
    assert trials(tmp_path / "out") == [row for row in before if int(row["trial"]) <= 2]


def test_an_interrupted_tune_goes_on_as_an_unbroken_one(tune: Command, tmp_path: Path) -> None:
    only = {"gray": suite()["tune"]["spaces"]["gray"]}
    tree = suite("test_tuning.Impatient")
    tree["tune"]["spaces"] = only
    tree["scenarios"]["plain"]["data"]["init_args"]["together"] = 4  # one answer for each trial
    tree["tune"]["trials"] = 14
    Gray.asked = 0
    status, _, errors = tune(tree)
    assert status == 130
    assert "continues" in errors
    assert len(trials(tmp_path / "out")) == 11
    with (tmp_path / "out" / "studies.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "worker_id": "torn')
    Gray.asked = 20
    assert tune(tree)[0] == 0
    assert Gray.asked == 20 + 3
    assert tune(tree, out=tmp_path / "whole")[0] == 0
    assert trials(tmp_path / "out") == trials(tmp_path / "whole")
    assert len({row["settings"] for row in trials(tmp_path / "whole")}) == 14


def test_a_killed_tune_ends_in_the_same_trials(tune: Command, tmp_path: Path) -> None:
    tree = suite("test_tuning.Slow")
    del tree["tune"]["spaces"]["ig"]
    assert tune(tree, out=tmp_path / "whole")[0] == 0
    paths = [ROOT, ROOT / "tests", Path(__file__).parent]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gibench.cli", "tune", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for line in process.stdout:
            if "trial 2 of" in line:
                time.sleep(0.05)  # in the midst of the third
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "trials.csv").exists()
    Gray.asked = 0
    assert tune(tree)[0] == 0
    assert Gray.asked == 2 * (TRIALS - 2)  # two groups of updates
    assert trials(tmp_path / "out") == trials(tmp_path / "whole")


def test_victims_of_the_suite_are_trained_first(tune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {"class_path": "gibench.data.Photographs", "init_args": {"updates": 2}}
    victim = {"class_path": "gibench.victims.mlp", "init_args": {"width": 16}}
    training = {"victim": victim, "data": data, "steps": 1, "checkpoints": [1], "batch_size": 4}
    assert tune(suite(victims={"small": training}))[0] == 0
    assert list((tmp_path / "runs" / "victims" / "small").glob("*.safetensors"))


def test_other_settings_in_the_same_folder_are_refused(tune: Command) -> None:
    tune(suite())
    tree = suite()
    tree["tune"]["updates"] = 3
    status, _, errors = tune(tree)
    assert status == 1
    assert "other settings" in errors


def test_a_damaged_journal_is_one_clear_line(tune: Command, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "studies.journal").write_bytes(b"nonsense\n{}\n")
    status, _, errors = tune(suite())
    assert status == 1
    assert "damaged" in errors


def test_a_run_takes_the_chosen_settings(gibench: Command, tune: Command, tmp_path: Path) -> None:
    tree = suite(tuned="tuned-${size}.yaml")
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    status, _, errors = gibench("run", path, "--print-config")
    assert status == 1
    assert "gibench tune" in errors
    assert errors.count("\n") == 1

    assert tune(tree, "--write", tmp_path / "tuned-small.yaml")[0] == 0
    chosen = load(tmp_path / "tuned-small.yaml")["chosen"]["plain"]
    status, printed, _ = gibench("run", path, "--print-config")
    assert status == 0
    resolved = yaml.safe_load(printed)
    assert resolved["plain x gray"]["attack"]["init_args"]["level"] == chosen["gray"]["settings"]["level"]
    assert resolved["plain x ig"]["attack"]["init_args"]["rate"] == chosen["ig"]["settings"]["rate"]
    assert resolved["plain x ig"]["attack"]["init_args"]["steps"] == 3
    assert resolved["plain x ig"]["data"]["init_args"]["split_for_attack"] == "score"
    status, printed, _ = gibench("run", path, "--print-config", "--attack.rate", "0.5")
    assert status == 1  # gray has none: options are laid over every cell
    tree["tune"]["spaces"]["ig"]["tv"] = [0.0, 0.1]
    path.write_text(yaml.safe_dump(tree))
    status, _, errors = gibench("run", path, "--print-config")
    assert status == 1
    assert "plain x ig" in errors


def test_chosen_settings_reach_nested_parts_and_keep_their_type(tmp_path: Path) -> None:
    attack = {
        "class_path": "gibench.attacks.GradientMatching",
        "init_args": {"search": {"class_path": "gibench.search.Adam", "init_args": {"steps": 7}}},
    }
    settings = {"search.rate": 1e-06, "search.steps": 9, "search.signed": True, "labels": None}
    tree = suite(tuned="chosen.yaml", attacks={"gm": attack}, cells=[{"scenario": "plain", "attacks": ["gm"]}])
    del tree["tune"]
    (plain,) = cells(tree, name="tiny", size="small")
    entry = {"settings": settings, "purpose": purpose(plain)}
    (tmp_path / "chosen.yaml").write_text(yaml.safe_dump({"chosen": {"plain": {"gm": entry}}}))
    (cell,) = cells(tree, name="tiny", size="small", file=tmp_path / "tiny.yaml")
    arguments = cell["attack"]["init_args"]
    assert arguments["search"]["init_args"] == {"rate": 1e-06, "steps": 9, "signed": True}
    assert arguments["labels"] is None
    (untouched,) = cells(tree, name="tiny", size="small")
    assert untouched["attack"] == attack
    assert options({"rate": 0.1})[0].startswith("--attack.rate=0.1")
    arguments = tree["attacks"]["gm"]["init_args"]
    arguments["restarts"] = 2
    with pytest.raises(ConfigurationError, match="another client or attack than plain x gm"):
        cells(tree, name="tiny", size="small", file=tmp_path / "tiny.yaml")


@pytest.mark.parametrize(
    ("spaces", "words"),
    [
        ({"ig": {"ratee": {"low": 0.1, "high": 1.0}}}, "'ratee'"),
        ({"ig": {"labels.rate": [1, 2]}}, "'labels.rate'"),
        ({"ig": {"rate": {"low": 1.0, "high": 0.1}}}, "is empty"),
        ({"ig": {"rate": {"low": 0.0, "high": 0.1, "log": True}}}, "rate"),
        ({"ig": {"rate": {"low": "1e-6", "high": 0.1}}}, "1.0e-6"),
        ({"ig": {"rate": {"low": 0.1, "high": 1.0, "step": 0.4}}}, "miss high"),
        ({"ig": {"rate": {"low": 0.1, "hihg": 1.0}}}, "high"),
        ({"ig": {"rate": []}}, "at least one"),
        ({"ig": {"steps": {"low": 1.5, "high": 9.0}}}, "steps"),
        ({"ig": {"steps": {"low": 0, "high": 9, "step": 1}}}, "steps"),
        ({"ig": {}}, "name settings"),
        ({"dlg": {"steps": {"low": 1, "high": 9, "step": 1}}}, "'dlg'"),
        ({}, "tune.spaces"),
    ],
    ids=str,
)
def test_a_wrong_space_is_one_clear_line_before_any_trial(
    tune: Command, tmp_path: Path, spaces: dict[str, Any], words: str
) -> None:
    tree = suite()
    tree["tune"]["spaces"] = {**suite()["tune"]["spaces"], **spaces} if spaces else {}
    Gray.asked = 0
    status, _, errors = tune(tree)
    assert status == 1
    assert errors.startswith("gibench: ")
    assert errors.count("\n") == 1, errors
    assert words in errors
    assert Gray.asked == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trials": 0}, "tune.trials"),
        ({"updates": "many"}, "tune.updates"),
        ({"updates": 1000}, "the tune split of plain"),
        ({"budget": 1}, "budget"),
    ],
    ids=str,
)
def test_a_wrong_budget_is_one_clear_line(tune: Command, changes: dict[str, Any], words: str) -> None:
    tree = suite()
    tree["tune"] |= changes
    status, _, errors = tune(tree)
    assert status == 1
    assert errors.count("\n") == 1, errors
    assert words in errors


def test_what_is_no_suite_with_a_space_cannot_be_tuned(gibench: Command, tmp_path: Path, single: Path) -> None:
    status, _, errors = gibench("tune", single, "--out", tmp_path / "out")
    assert status == 1
    assert "no key `tune`" in errors


def test_an_attack_that_the_threat_model_denies_is_refused_before_any_trial(tune: Command) -> None:
    tree = suite()
    tree["scenarios"]["plain"]["client"]["init_args"]["threat_model"]["labels"] = "none"
    Gray.asked = 0
    status, _, errors = tune(tree)
    assert status == 1
    assert "ig" in errors
    assert Gray.asked == 0


def test_the_seal_holds() -> None:
    with pytest.raises(AssertionError, match="score split"):
        Sealed().describe()
