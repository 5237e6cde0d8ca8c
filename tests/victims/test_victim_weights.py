"""Weights on disk: what is saved comes back, what is wrong is refused, a published network scores what it should."""

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from gibench.errors import StorageError, WeightsError
from gibench.victims import Victim, lenet, load_weights, mlp, resnet20, save_weights
from gibench.victims.checkpoints import accuracy

IMAGENET_NORMALIZATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def weights_sha256(victim: Victim) -> str:
    return str(victim.fingerprint()["weights_sha256"])


def test_saved_weights_come_back_with_their_facts(tmp_path: Path) -> None:
    victim = resnet20(seed=3)
    victim.stage, victim.training_steps, victim.test_accuracy = "trained", 12, 0.25
    path = save_weights(victim, tmp_path / "new" / "victim.safetensors")
    start = resnet20(seed=4)
    untouched = start.fingerprint()
    loaded = load_weights(start, path)
    assert loaded.fingerprint() == victim.fingerprint()
    assert start.fingerprint() == untouched
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(images), victim.eval()(images))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_stated_facts_come_before_those_of_the_file(tmp_path: Path) -> None:
    path = save_weights(lenet(), tmp_path / "lenet.safetensors")
    loaded = load_weights(lenet(), path, stage="converged", training_steps=7, test_accuracy=0.5)
    assert (loaded.stage, loaded.training_steps, loaded.test_accuracy) == ("converged", 7, 0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_take_the_type_of_the_victim(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = lenet().to(dtype)
    path = save_weights(saved, tmp_path / "lenet.safetensors")
    loaded = load_weights(lenet(seed=1), path)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, saved.get_parameter(name).float())


def test_relative_paths_are_found_in_the_weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(lenet(seed=2), tmp_path / "lenet.safetensors")
    monkeypatch.delenv("GIBENCH_WEIGHTS", raising=False)
    with pytest.raises(WeightsError, match="set GIBENCH_WEIGHTS"):
        load_weights(lenet(), "lenet.safetensors")
    monkeypatch.setenv("GIBENCH_WEIGHTS", str(tmp_path))
    assert weights_sha256(load_weights(lenet(), "lenet.safetensors")) == weights_sha256(lenet(seed=2))
    with pytest.raises(WeightsError, match=r"there is no file other\.safetensors, nor"):
        load_weights(lenet(), "other.safetensors")


def _pickle(path: Path, _: dict[str, Tensor]) -> None:
    torch.save(lenet().state_dict(), path)


def _old_pickle(path: Path, _: dict[str, Tensor]) -> None:
    path.write_bytes(pickle.dumps({"weight": 1}))


def _truncate(path: Path, _: dict[str, Tensor]) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path, _: dict[str, Tensor]) -> None:
    path.write_bytes(b"")


def _rename(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name.replace("fc.weight", "head.weight"): tensor for name, tensor in tensors.items()}, path)


def _other_classes(path: Path, _: dict[str, Tensor]) -> None:
    save_weights(lenet(num_classes=100), path)


def _not_a_number(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({**tensors, "fc.bias": torch.full((10,), math.nan)}, path)


def _no_stage(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path)


def _other_architecture(path: Path, _: dict[str, Tensor]) -> None:
    save_weights(mlp(width=4), path)


def _flip_a_bit(path: Path, _: dict[str, Tensor]) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _damaged_fingerprint(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path, metadata={"gibench_fingerprint": json.dumps({"stage": "half"})})


@pytest.mark.parametrize(
    ("damage", "stage", "message"),
    [
        (_pickle, "initial", "a pickle is never read: convert it with safetensors"),
        (_old_pickle, "initial", "no complete safetensors file"),
        (_truncate, "initial", "no complete safetensors file"),
        (_empty, "initial", "no complete safetensors file"),
        (_rename, "initial", r"1 missing \(fc.weight\), 1 unexpected \(head.weight\)"),
        (_other_classes, "initial", r"2 of another shape \(fc.bias \(100,\) for \(10,\), fc.weight \(100, 768\)"),
        (_not_a_number, "initial", r"NaN or infinity in fc\.bias"),
        (_no_stage, None, "set stage"),
        (_other_architecture, None, "is of mlp4, not lenet"),
        (_flip_a_bit, None, "not what its fingerprint says"),
        (_damaged_fingerprint, "initial", "no complete safetensors file"),
    ],
)
def test_bad_weights_are_refused_with_advice(
    tmp_path: Path, damage: Callable[[Path, dict[str, Tensor]], None], stage: Any, message: str
) -> None:
    path = save_weights(lenet(), tmp_path / "lenet.safetensors")
    damage(path, load_file(path))
    with pytest.raises(WeightsError, match=message) as raised:
        load_weights(lenet(), path, stage=stage)
    assert "\n" not in str(raised.value)


def test_weights_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        save_weights(lenet(), tmp_path / "file" / "lenet.safetensors")


# Real weights.


def reference_resnet20(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    """The network written out from its tensors alone: evaluation-mode BatchNorm, option-A shortcuts."""

    def normalize(x: Tensor, name: str) -> Tensor:
        mean, variance = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        scale = weight / (variance + 1e-5).sqrt()
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]

    mean, std = torch.tensor(IMAGENET_NORMALIZATION)[..., None, None]
    x = normalize(F.conv2d((images - mean) / std, tensors["conv1.weight"], padding=1), "bn1").clamp(min=0)
    for layer in (1, 2, 3):
        for block in range(3):
            name = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            shortcut = x
            if stride == 2:
                kept = x[:, :, ::2, ::2]
                zeros = torch.zeros_like(kept[:, : kept.shape[1] // 2])
                shortcut = torch.cat([zeros, kept, zeros], dim=1)
            first = F.conv2d(x, tensors[f"{name}.conv1.weight"], stride=stride, padding=1)
            second = F.conv2d(normalize(first, f"{name}.bn1").clamp(min=0), tensors[f"{name}.conv2.weight"], padding=1)
            x = (normalize(second, f"{name}.bn2") + shortcut).clamp(min=0)
    return x.mean((2, 3)) @ tensors["linear.weight"].T + tensors["linear.bias"]


def cifar10_test_images(root: Path, count: int) -> tuple[Tensor, Tensor]:
    with np.load(root / "cifar10.npz") as arrays:
        images = torch.from_numpy(arrays["test_images"][:count]).permute(0, 3, 1, 2) / 255
        return images, torch.from_numpy(arrays["test_labels"][:count]).long()


def published_resnet20(weights_root: Path) -> Victim:
    path = weights_root / "cifar10_resnet20_akamaster.safetensors"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the folder GIBENCH_WEIGHTS")
    return load_weights(resnet20(), path, stage="converged", test_accuracy=0.9173)


def test_published_resnet20_on_a_thousand_images(weights_root: Path, cifar10_root: Path) -> None:
    victim = published_resnet20(weights_root)
    assert victim.fingerprint()["stage"] == "converged"
    assert victim.fingerprint()["training_steps"] is None
    images, labels = cifar10_test_images(cifar10_root, 1000)
    assert accuracy(victim, images, labels) == 0.915
    tensors = load_file(weights_root / "cifar10_resnet20_akamaster.safetensors")
    ours = copy.deepcopy(victim).eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(images[:50]), reference_resnet20(tensors, images[:50]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_published_resnet20_scores_its_published_accuracy(weights_root: Path, cifar10_root: Path) -> None:
    images, labels = cifar10_test_images(cifar10_root, 10_000)
    assert accuracy(published_resnet20(weights_root), images, labels) == 0.9173
