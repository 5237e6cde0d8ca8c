"""A tiny suite on the embedded photographs, and a way to run it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

DATA = {"class_path": "gibench.data.Photographs", "init_args": {"updates": 6, "together": 2}}
LENET = {"class_path": "gibench.victims.lenet", "init_args": {"seed": 0}}
MLP = {"class_path": "gibench.victims.mlp", "init_args": {"width": 16}}


def client(victim: dict[str, Any], **threat: str) -> dict[str, Any]:
    known = {"victim": "initial", "batch_norm": "absent", **threat}
    return {"class_path": "gibench.clients.FedSGD", "init_args": {"victim": victim, "threat_model": known}}


SUITE = {
    "name": "tiny",
    "scenarios": {
        "lenet": {"data": DATA, "client": client(LENET)},
        "mlp": {"data": DATA, "client": client(MLP)},
    },
    "attacks": {
        "bias": {"class_path": "gibench.attacks.BiasAttack"},
        "idlg": {"class_path": "gibench.attacks.idlg", "init_args": {"steps": 2}},
        "ig": {"class_path": "gibench.attacks.inverting_gradients", "init_args": {"steps": 12, "restarts": 2}},
    },
    "cells": [
        {"scenario": "lenet", "attacks": ["ig", "idlg", "bias"], "wrong_update": ["ig"]},
        {"scenario": "mlp", "attacks": ["bias"]},
    ],
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """The tiny suite as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return path


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """One attack on one scenario as a file."""
    path = tmp_path / "single.yaml"
    parts = {"data": DATA, "client": client(LENET), "attack": SUITE["attacks"]["ig"]}  # type: ignore[index]
    path.write_text(yaml.safe_dump(parts))
    return path


@pytest.fixture
def gibench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process, without LPIPS weights: (status, output, errors)."""
    from gibench.cli import main

    monkeypatch.setenv("GIBENCH_WEIGHTS", "")
    monkeypatch.setattr("gibench.metrics.image_quality.load_network", lambda *_, **__: "left out of this test.")

    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
