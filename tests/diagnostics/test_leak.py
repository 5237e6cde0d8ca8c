"""`gibench doctor --leak`: what it prints of a configuration before any attack, and what it says of bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import batch_of, small_victim

from gibench.clients import FedAvg, FedSGD
from gibench.diagnostics import identifiability, in_double
from gibench.diagnostics.leak import in_words, layers_in_words
from gibench.victims import cnn6

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gibench(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command line in this process: (status, output, errors)."""
    from gibench.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def write_arrays(folder: Path) -> Path:
    """A data set of small gray images."""
    import numpy as np

    source = np.random.default_rng(0)
    path = folder / "images.npz"
    np.savez(path, images=source.integers(0, 256, (60, 8, 8, 1), dtype=np.uint8), labels=np.arange(60) % 10)
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """LeNet on images of 8 x 8 pixels, alone, and under a defense that adds noise."""
    data = {"class_path": "gibench.data.Arrays", "init_args": {"path": str(write_arrays(tmp_path)), "updates": 3}}
    victim = {"class_path": "gibench.victims.lenet", "init_args": {"image_shape": [1, 8, 8]}}
    threat = {"victim": "initial", "batch_norm": "absent"}
    plain: dict[str, Any] = {
        "class_path": "gibench.clients.FedSGD",
        "init_args": {"victim": victim, "threat_model": threat},
    }
    noise = {"class_path": "gibench.defenses.GaussianNoise", "init_args": {"sigma": 0.25}}
    noisy = {**plain, "init_args": {"victim": victim, "defense": noise, "threat_model": {**threat, "defense": "known"}}}
    tree = {
        "name": "tiny",
        "scenarios": {"plain": {"data": data, "client": plain}, "noisy": {"data": data, "client": noisy}},
        "attacks": {"dlg": {"class_path": "gibench.attacks.dlg", "init_args": {"steps": 1}}},
        "cells": [{"scenario": "plain", "attacks": ["dlg"]}, {"scenario": "noisy", "attacks": ["dlg"]}],
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_the_doctor_says_what_leaves_no_trace_and_runs_no_attack(
    gibench: Command, suite: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    status, printed, errors = gibench("doctor", "--leak", suite, "--updates", 2)
    assert (status, errors.strip()) == (0, "") or "Warning" in errors
    plain, noisy = printed.split("noisy\n")
    assert plain.count("B = 1: 0 of 64 directions leave no trace") == 2
    assert "condition of them" in plain
    assert "Gaussian noise, assumed" in plain
    assert "Gaussian noise of the client's defense" in noisy
    assert "0.25" in noisy
    assert "not served" in plain  # LeNet has biases and sigmoids
    assert "an audit of one's own data" in printed
    assert not (tmp_path / "runs").exists()


def test_the_layers_of_r_gap_are_counted_where_they_are_served() -> None:
    batch = batch_of(1, 1)
    said = layers_in_words(in_double(FedSGD(cnn6(image_shape=(3, 8, 8)))), batch)
    assert "left open: " in said
    assert "not served" in layers_in_words(in_double(FedSGD(small_victim())), batch_of(1, 1))
    assert "one image" in layers_in_words(in_double(FedSGD(small_victim())), batch_of(1, 2))
    averaged = FedAvg(small_victim(), steps=2)
    assert "one gradient" in layers_in_words(in_double(averaged), batch_of(1, 1))


def test_an_estimate_claims_no_null_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gibench.diagnostics.spectrum.MOST_MEMORY", 1000)
    found = identifiability(in_double(FedSGD(small_victim(side=4))), batch_of(1, 1, side=4), scenario="s")
    said = "\n".join(in_words(found))
    assert "too large for all singular values" in said
    assert "no trace" not in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--updates", "0"], "look at 1 or more"),
        (["--size", "huge"], "no size 'huge'"),
        (["--leak", "no_such.yaml"], "there is no configuration 'no_such.yaml'"),
    ],
    ids=["updates", "size", "file"],
)
def test_what_is_wrong_is_said_in_one_line(gibench: Command, suite: Path, change: list[str], said: str) -> None:
    status, _, errors = gibench("doctor", "--leak", suite, *change)
    assert status == 1
    assert said in errors
    assert "Traceback" not in errors


def asking(suite: Path, **settings: Any) -> Path:
    """The suite with a diagnosis asked for, and nothing scored that takes long."""
    tree = yaml.safe_load(suite.read_text())
    tree["identifiability"] = settings
    tree["metrics"] = {"lpips": False, "identified": False, "nearest_image": False}
    path = suite.with_name("asking.yaml")
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_suite_that_asks_has_its_first_updates_diagnosed_once(gibench: Command, suite: Path, tmp_path: Path) -> None:
    out, path = tmp_path / "run", tmp_path / "run" / "identifiability.jsonl"
    status, _, errors = gibench("run", asking(suite, updates=1), "--out", out)
    assert status == 0, errors
    first = path.read_bytes()
    assert [json.loads(line)["scenario"] for line in first.splitlines()] == ["plain", "noisy"]
    assert gibench("run", asking(suite, updates=2), "--out", out)[0] == 0
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert path.read_bytes().startswith(first)
    assert [record["scenario"] for record in records] == ["plain", "noisy", "plain", "noisy"]
    attacked = {json.loads(line)["update_id"] for line in (out / "records.jsonl").read_text().splitlines()}
    assert {record["update_id"] for record in records} < attacked
    assert records[1]["own_noise"]
    assert "What the updates discard" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"updates": 0}, "1 update or more"),
        ({"updates": True}, "1 update or more"),
        ({}, "lacks updates"),
        ({"updates": 1, "noise": 2}, "unknown key 'noise'"),
    ],
)
def test_a_diagnosis_that_makes_no_sense_is_refused(
    gibench: Command, suite: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    status, _, errors = gibench("run", asking(suite, **settings), "--out", tmp_path / "run")
    assert status == 1
    assert said in errors
