"""An inverter of some classes attacks the others, and what its training cost goes with the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import SmallGenerator, small_victim
from safetensors.torch import load_file

from generators import load_generator
from gibench.attacks import gias
from gibench.clients import FedSGD
from gibench.data import Photographs
from gibench.runs.manifest import new_cell
from gibench.runs.plan import Job
from gibench.search.generator import Generator
from gibench.types import ThreatModel

Command = Callable[..., tuple[int, str, str]]


CLIENT = {
    "class_path": "gibench.clients.FedSGD",
    "init_args": {
        "victim": {"class_path": "gibench.victims.lenet", "init_args": {"seed": 0}},
        "threat_model": {"victim": "initial", "batch_norm": "absent", "prior_data": "out_of_distribution"},
    },
}


def data(**options: Any) -> dict[str, Any]:
    return {"class_path": "gibench.data.Photographs", "init_args": {"updates": 4, "together": 4, **options}}


SUITE = {
    "name": "other-classes",
    "metrics": {"lpips": False},
    "inverters": {
        "other": {
            "class_path": "inverters.fit_inverter",
            "init_args": {
                "out": "trained",
                "client": CLIENT,
                "data": data(classes=[3, 4], synthetic="dct"),
                "settings": {"hidden": 8},
                "features": {"buckets": 64},
                "epochs": 1,
                "together": 16,
                "tune": 20,
                "origin": "out_of_distribution",
            },
        }
    },
    "scenarios": {
        "others": {"data": data(classes=[0, 1, 2]), "client": CLIENT},
    },
    "attacks": {
        "lti": {"class_path": "inverters.LearningToInvert", "init_args": {"path": "trained/inverter.safetensors"}},
        "bias": {"class_path": "gibench.attacks.BiasAttack"},
    },
    "cells": [{"scenario": "others", "attacks": ["lti", "bias"], "wrong_update": ["lti"]}],
}


def test_classes_and_offline_cost_go_through_a_run(
    gibench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    status, _, errors = gibench("run", "suite.yaml", "--out", "out")
    assert status == 0, errors
    cells = {cell["attack"]: cell for cell in json.loads((tmp_path / "out" / "manifest.json").read_text())["cells"]}
    attacked = Photographs(classes=[0, 1, 2], updates=4, together=4)
    assert cells["lti"]["data"] == attacked.describe()
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert {record["label"] for record in records} <= {0, 1, 2}
    # Floors are those of the images attacked, not of what the attacker learned from.
    mean = attacked.split("prior").images.mean(0)
    update = attacked.update_ids()[0]
    stored = next((tmp_path / "out").glob(f"reconstructions/others/floor*mean*image/{update}.safetensors"))
    assert (load_file(stored)["images"][0] - mean).abs().max() < 1e-5
    # The cost is that of the file, and of no attack without one.
    learned = 2 * len(Photographs(classes=[3, 4]).split("prior").ids)
    [cost] = cells["lti"]["offline"]
    assert [cost["weights"]] == cells["lti"]["attack_weights"]
    assert (cost["images"], cost["steps"], cost["examples"]) == (learned, learned // 16, learned // 16 * 16)
    assert cost["total"] == cost["seconds"] > 0
    assert cells["lti (wrong update)"]["offline"] == [cost]
    assert cells["bias"]["offline"] == []
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"training on {learned:,} images, {cost['examples']:,} examples in {cost['steps']:,} steps" in page
    # Without its record an attack says so, and a run that was begun goes on.
    (tmp_path / "trained" / "cost.json").unlink()
    status, _, errors = gibench("run", "suite.yaml", "--out", "again")
    assert status == 0, errors
    assert "weights whose training is not recorded" in (tmp_path / "again" / "report.html").read_text()
    assert gibench("run", "suite.yaml", "--out", "out")[0] == 0


def test_only_what_was_loaded_has_weights_and_a_cost() -> None:
    def cell(generator: Generator) -> dict[str, Any]:
        client = FedSGD(small_victim(), threat_model=ThreatModel(victim="initial", batch_norm="absent"))
        job = Job("own", "gias", Photographs(), client, gias(generator=generator), {})
        return new_cell(job, precision="32-true")

    made = SmallGenerator()
    assert cell(made)["attack_weights"] == cell(made)["offline"] == []
    shipped = load_generator("vae_photographs_tiny.safetensors")
    assert cell(shipped)["attack_weights"] == [shipped.weights_sha256]
    assert [cost["weights"] for cost in cell(shipped)["offline"]] == [shipped.weights_sha256]
