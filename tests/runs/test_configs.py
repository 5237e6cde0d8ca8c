"""Every shipped configuration runs through the real command line, in a short form."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from gibench.runs.configuration import load

Command = Callable[..., tuple[int, str, str]]
CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = {"steps": 2, "restarts": 1, "updates": 2}


def shipped(room: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / room).glob("*.yaml"))


def shorten(node: Any) -> Any:
    """Two steps, one restart, two updates; everything else as shipped."""
    if isinstance(node, dict):
        return {key: SHORT.get(key, shorten(value)) for key, value in node.items()}
    return [shorten(item) for item in node] if isinstance(node, list) else node


def run(gibench: Command, folder: Path, tree: dict[str, Any], *arguments: str) -> list[dict[str, Any]]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    status, _, errors = gibench("run", path, "--out", folder / "out", *arguments)
    assert status == 0, errors
    return [json.loads(line) for line in (folder / "out" / "records.jsonl").read_text().splitlines()]


def photographs(batch_size: int = 1) -> dict[str, Any]:
    return {"class_path": "gibench.data.Photographs", "init_args": {"updates": 2, "batch_size": batch_size}}


def part(room: str, name: str) -> dict[str, Any]:
    return shorten(load(CONFIGS / room / f"{name}.yaml"))  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("name", shipped("suites"))
def test_suites(gibench: Command, tmp_path: Path, name: str, size: str, request: pytest.FixtureRequest) -> None:
    """Each cell of each size; the numbers of steps and updates are the only things that change."""
    tree = load(CONFIGS / "suites" / f"{name}.yaml")
    if size not in tree["sizes"]:
        pytest.skip(f"{name} has no size {size}")
    if "CIFAR10" in str(tree):
        request.getfixturevalue("cifar10_root")
    cells = sum(len(row["attacks"]) for row in tree["cells"])
    records = run(gibench, tmp_path, shorten(tree), "--size", size)
    found = {(r["scenario"], r["attack"]) for r in records}
    assert len([attack for _, attack in found if not attack.startswith("floor") and "wrong" not in attack]) == cells


@pytest.mark.parametrize("name", shipped("attacks"))
def test_attacks(gibench: Command, tmp_path: Path, name: str) -> None:
    tree = {"data": photographs(), "client": part("clients", "fedsgd_mlp"), "attack": part("attacks", name)}
    assert run(gibench, tmp_path, tree)


@pytest.mark.parametrize("name", shipped("clients"))
def test_clients(gibench: Command, tmp_path: Path, name: str) -> None:
    attack = {"class_path": "gibench.attacks.inverting_gradients", "init_args": {"steps": 1}}
    client = load(CONFIGS / "clients" / f"{name}.yaml")
    assert run(gibench, tmp_path, {"data": photographs(4), "client": client, "attack": attack})


@pytest.mark.parametrize("name", shipped("data"))
def test_data(gibench: Command, tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    data = part("data", name)
    side = 32
    if name == "cifar10":
        request.getfixturevalue("cifar10_root")
    if name == "mnist":
        if not (Path(os.environ.get("GIBENCH_DATA", "")) / "mnist.npz").is_file():
            pytest.skip("needs MNIST: set GIBENCH_DATA to a folder with mnist.npz.")
        side = 28
    if name == "arrays":
        pixels = np.random.default_rng(0).integers(0, 256, (60, side, side, 3), dtype=np.uint8)
        np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(60) % 10)
        data["init_args"]["path"] = str(tmp_path / "images.npz")
    client = part("clients", "fedsgd_lenet")
    client["init_args"]["victim"]["init_args"]["image_shape"] = [1 if name == "mnist" else 3, side, side]
    attack = part("attacks", "ig")
    assert run(gibench, tmp_path, {"data": data, "client": client, "attack": attack})


@pytest.mark.parametrize("name", shipped("victims"))
def test_victims(gibench: Command, tmp_path: Path, name: str) -> None:
    options = ["--steps", "1", "--checkpoints", "[0, 1]", "--batch_size", "8", "--out", str(tmp_path / "out")]
    data = ["--data", "gibench.data.Photographs", "--data.updates", "2"]
    status, printed, errors = gibench("fit", CONFIGS / "victims" / f"{name}.yaml", *options, *data)
    assert status == 0, errors
    assert printed.count("safetensors") == 2
    start, end = (load_file(path) for path in sorted((tmp_path / "out").glob("*.safetensors")))
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)


def test_every_configuration_stands_in_a_room_that_is_tested() -> None:
    assert {path.parent.name for path in CONFIGS.rglob("*.yaml")} == {"suites", "attacks", "clients", "data", "victims"}
