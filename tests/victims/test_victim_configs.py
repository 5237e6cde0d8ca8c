"""Every shipped configuration of a training runs, one step long."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import load_file

from gibench.victims.training import fit_victim

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "victims").glob("*.yaml"))


@pytest.mark.filterwarnings("ignore:.*logging interval.*", "ignore:.*exists and is not empty.*", "ignore:.*LeafSpec.*")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_train(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    arrays = {f"{part}_images": draw.integers(0, 256, (10, 32, 32, 3), np.uint8) for part in ("train", "test")}
    labels = {f"{part}_labels": draw.integers(0, 10, 10) for part in ("train", "test")}
    np.savez(tmp_path / "cifar10.npz", **arrays, **labels)
    monkeypatch.setenv("GIBENCH_DATA", str(tmp_path))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(fit_victim)
    short = {"out": str(tmp_path / "out"), "steps": 1, "checkpoints": [0], "batch_size": 4, "accelerator": "cpu"}
    arguments = parser.instantiate(parser.parse_object(yaml.safe_load(config.read_text()) | short))
    start, end = (load_file(path) for path in fit_victim(**arguments.as_dict()))
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)


def test_configurations_are_shipped() -> None:
    assert "lenet_cifar10" in {config.stem for config in CONFIGS}
