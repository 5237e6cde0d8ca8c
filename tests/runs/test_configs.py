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
from gibench.runs.suite import cells, trainings

Command = Callable[..., tuple[int, str, str]]
CONFIGS = Path(__file__).parents[2] / "configs"
SHORT: dict[str, Any] = {
    "steps": 2,
    "ramp_steps": 1,
    "latent_steps": 2,
    "weight_steps": 1,
    "population": 4,
    "warm_up": 1,
    "group": 0.0,
    "restarts": 1,
    "updates": 2,
    "checkpoints": [0, 1, 2],
    "auxiliary": 40,
    "auxiliary_deep": 40,
    "epochs": 1,
    "last": 1,
    "epochs_deep": 1,
    "epochs_deep_b4": 1,
    "hidden": 8,
}
CLIENTS = {
    "ats_undo": "fedsgd_lenet_ats",
    "ggl": "fedsgd_lenet_images",
    "gias": "fedsgd_lenet_images",
    "gifd": "fedsgd_lenet_images",
    "gradinversion": "fedsgd_resnet20",
    "r_gap": "fedsgd_fcn3",
    "second_order": "fedsgd_lenet_default",
    "second_order_continuation": "fedsgd_lenet_relu",
    "second_order_pca": "fedsgd_lenet_images",
}  # of attacks on one defense, or kind of victim
SLOW = {  # the accuracy of ConvNet64; and what shortened is the same as small
    ("broken_defenses", "full"),
    ("bayes_optimal", "full"),
    ("identifiability", "small"),  # the singular values are as many as ever
    ("identifiability", "full"),
    ("noise_limit", "small"),  # the same, and Jacobians
    ("noise_limit", "full"),
    ("second_order", "small"),  # Jacobians of every pixel
    ("leaderboard_first", "full"),
    ("leaderboard_batches", "small"),
    ("leaderboard_batches", "full"),
    ("leaderboard_gradients", "small"),
    ("leaderboard_gradients", "full"),
    ("leaderboard_labels", "small"),
    ("leaderboard_labels", "full"),
    ("leaderboard_perceptron", "small"),
    ("leaderboard_perceptron", "full"),
    ("leaderboard_generators", "small"),
    ("leaderboard_generators", "full"),
    ("leaderboard_exact", "small"),
    ("leaderboard_exact", "full"),
    ("second_order", "full"),
    ("second_order_pairs", "small"),
    ("second_order_pairs", "full"),
    ("second_order_deep", "small"),
    ("second_order_deep", "full"),
    ("learned_inverters", "small"),  # trainings
    ("learned_inverters", "full"),
    ("moving_weights", "small"),
    ("moving_weights", "full"),
    ("defended_inverters", "small"),
    ("defended_inverters", "full"),
    ("architectures", "small"),
    ("architectures", "full"),
    ("hybrid", "small"),
    ("hybrid", "full"),
    ("variable_batch", "small"),
    ("variable_batch", "full"),
    ("out_of_distribution_inverters", "small"),
    ("out_of_distribution_inverters", "full"),
    ("prior_families", "small"),
    ("prior_families", "full"),
    ("generative", "small"),
    ("generative", "full"),
    ("out_of_distribution", "small"),
    ("out_of_distribution", "full"),
    ("bayes_optimal", "small"),
    ("parity", "small"),
    ("broken_defenses", "small"),  # twenty scenarios, three trainings
    ("parity", "full"),
    ("first", "full"),
    ("lenet_batches", "small"),
    ("label_study", "small"),
    ("mlp_single", "small"),
    ("assumption_audit", "small"),  # 36 cells of ResNet-20
    ("assumption_audit", "full"),
    ("label_study", "full"),
    ("lenet_batches", "full"),
    ("lenet_l2_cosine", "full"),
    ("mlp_single", "full"),
    ("repeated_labels", "small"),  # ten scenarios, a perceptron of five million weights
    ("repeated_labels", "full"),
    ("tv_sweep", "full"),
    ("labels", "small"),  # hundreds of cells
    ("labels", "full"),
    ("r_gap", "small"),  # dense equations of six layers
    ("r_gap", "full"),
}

LONG_ONES = {"fedsgd_convnet64", "fedsgd_convnet64_silu", "convnet64_cifar10", "convnet64_early_cifar10"}


def shipped(room: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / room).glob("*.yaml"))


def marked(room: str) -> list[Any]:
    """All of a room; those of ConvNet64, which take longest, with the long tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in LONG_ONES else name for name in shipped(room)]


def shorten(node: Any) -> Any:
    """Two steps, one restart, two updates, victims at the start and after two; everything else as shipped."""
    if isinstance(node, dict):
        return {
            key: [value[0], 2] if key.endswith("_steps") and isinstance(value, list) else SHORT.get(key, shorten(value))
            for key, value in node.items()
        }
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


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(name, size, marks=[pytest.mark.slow] if (name, size) in SLOW else [])
        for name in shipped("suites")
        for size in ("small", "full")
    ],
)
def test_suites(
    gibench: Command,
    tmp_path: Path,
    name: str,
    size: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each cell of each size; the numbers of steps and updates are the only things that change."""
    tree = load(CONFIGS / "suites" / f"{name}.yaml")
    if size not in tree["sizes"]:
        pytest.skip(f"{name} has no size {size}")
    if "CIFAR10" in str(tree):
        request.getfixturevalue("cifar10_root")
    if "flowers17" in str(tree):
        request.getfixturevalue("flowers17")
    tree.pop("tuned", None)  # settings for the attacks at their full length
    monkeypatch.chdir(tmp_path)  # victims go into runs/victims
    records = run(gibench, tmp_path, shorten(tree), "--size", size)
    found = {(r["scenario"], r["attack"]) for r in records}
    attacks = [attack for _, attack in found if not attack.startswith(("floor", "limit")) and "wrong" not in attack]
    assert len(attacks) == len(cells(shorten(tree), name=name, size=size))


@pytest.mark.parametrize("name", sorted({name for name, _ in SLOW} - {"labels"}))
def test_long_suites_resolve(gibench: Command, name: str) -> None:
    """What runs only with the long tests is read whole with the short ones."""
    status, printed, errors = gibench("run", CONFIGS / "suites" / f"{name}.yaml", "--print-config")
    assert status == 0, errors
    assert len(yaml.safe_load(printed)) == len(
        cells(load(CONFIGS / "suites" / f"{name}.yaml"), name=name, size="small")
    )


LONG = {"second_order_continuation", "second_order_pca"}  # five searches; components of all of CIFAR-10


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in shipped("attacks")]
)
def test_attacks(gibench: Command, tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    if "CIFAR10" in str(load(CONFIGS / "attacks" / f"{name}.yaml")):
        request.getfixturevalue("cifar10_root")
    tree = {
        "data": photographs(),
        "client": part("clients", CLIENTS.get(name, "fedsgd_mlp")),
        "attack": part("attacks", name),
    }
    assert run(gibench, tmp_path, tree)


@pytest.mark.parametrize("name", marked("clients"))
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
    if name == "flowers17":
        request.getfixturevalue("flowers17")
        side = 64
        data["init_args"]["updates"] = 2
    if name == "arrays":
        pixels = np.random.default_rng(0).integers(0, 256, (60, side, side, 3), dtype=np.uint8)
        np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(60) % 10)
        data["init_args"]["path"] = str(tmp_path / "images.npz")
    client = part("clients", "fedsgd_lenet")
    client["init_args"]["victim"]["init_args"] |= {
        "image_shape": [1 if name == "mnist" else 3, side, side],
        "num_classes": 17 if name == "flowers17" else 10,
    }
    attack = part("attacks", "ig")
    assert run(gibench, tmp_path, {"data": data, "client": client, "attack": attack})


@pytest.mark.parametrize("name", marked("victims"))
def test_victims(gibench: Command, tmp_path: Path, name: str) -> None:
    options = ["--steps", "1", "--checkpoints", "[0, 1]", "--batch_size", "8", "--out", str(tmp_path / "out")]
    data = ["--data", "gibench.data.Photographs", "--data.updates", "2"]
    status, printed, errors = gibench("fit", CONFIGS / "victims" / f"{name}.yaml", *options, *data)
    assert status == 0, errors
    assert printed.count("safetensors") == 2
    start, end = (load_file(path) for path in sorted((tmp_path / "out").glob("*.safetensors")))
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)


@pytest.mark.parametrize("name", shipped("inverters"))
def test_inverters(gibench: Command, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a cache goes into runs/pairs
    small = {
        "mlp": '{"hidden": 8}',
        "convolutional": '{"hidden": 8, "channels": 8}',
        "set": '{"model": 8, "heads": 2, "encoders": 1, "decoders": 1, "hidden": 8}',
    }
    network = load(CONFIGS / "inverters" / f"{name}.yaml")["init_args"]["network"]
    options = ["--settings", small[network], "--epochs", "1", "--images", "40", "--tune", "20", "--together", "5"]
    data = ["--data", "gibench.data.Photographs"]
    path = CONFIGS / "inverters" / f"{name}.yaml"
    status, printed, errors = gibench("fit", path, *options, *data, "--out", str(tmp_path / "out"))
    assert status == 0, errors
    assert "inverter.safetensors" in printed


@pytest.mark.parametrize("name", shipped("generators"))
def test_generators(gibench: Command, tmp_path: Path, name: str) -> None:
    path = CONFIGS / "generators" / f"{name}.yaml"
    tree = load(path)
    options = ["--together", "2", "--images", "4", "--project", "0", "--data", "gibench.data.Photographs"]
    small = {"dcgan": '{"width": 2}', "residual_gan": '{"width": 2}', "vae": '{"widths": [4, 4, 4, 4]}'}
    options += ["--settings", small[tree["init_args"]["model"]]]
    if tree["class_path"] == "generators.fit_giml":
        options += ["--rounds", "1", "--latent_steps", "1", "--weight_steps", "1"]
    else:
        options += ["--steps", "1", "--tune", "2", "--precision", "32-true"]
    status, printed, errors = gibench("fit", path, *options, "--out", str(tmp_path / "out"))
    assert status == 0, errors
    assert "_photographs.safetensors" in printed


def test_every_configuration_stands_in_a_room_that_is_tested() -> None:
    """`tuned` is tested with the suites."""
    rooms = {"suites", "attacks", "clients", "data", "generators", "inverters", "victims"}
    assert {path.parent.name for path in CONFIGS.rglob("*.yaml")} - {"tuned"} == rooms


def test_a_suite_with_victims_and_a_series_is_shortened_as_a_whole() -> None:
    tree = {
        "sizes": {"small": {"soteria_steps": [0, 1, 10, 5000], "last": 5000, "ig_steps": 4800}},
        "victims": {"lenet": {"steps": "${last}", "checkpoints": "${soteria_steps}"}},
        "scenarios": {"soteria": {"over": {"step": "${soteria_steps}"}, "data": {}, "client": {"path": "step${step}"}}},
        "attacks": {"ig": {"init_args": {"steps": "${ig_steps}"}}},
        "cells": [{"scenario": "soteria", "attacks": ["ig"]}],
    }
    found = cells(shorten(tree), name="suite", size="small")
    assert [cell["client"]["path"] for cell in found] == ["step0", "step2"]
    assert trainings(shorten(tree), name="suite", size="small") == {
        "victims/lenet": {"steps": 2, "checkpoints": [0, 1, 2]}
    }


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize(
    "name", [name for name in shipped("suites") if "tuned" in load(CONFIGS / "suites" / f"{name}.yaml")]
)
def test_tuned_settings_are_there_and_of_their_suite(gibench: Command, name: str, size: str) -> None:
    status, printed, errors = gibench("run", CONFIGS / "suites" / f"{name}.yaml", "--size", size, "--print-config")
    assert status == 0, errors
    chosen = load(CONFIGS / "tuned" / f"{name}.yaml")["chosen"]
    resolved = yaml.safe_load(printed)
    for scenario, attacks in chosen.items():
        for attack, entry in attacks.items():
            found = resolved[f"{scenario} x {attack}"]["attack"]["init_args"]
            assert entry["settings"].items() <= found.items()
