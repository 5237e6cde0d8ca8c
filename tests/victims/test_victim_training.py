"""Training a victim: its checkpoints, what they say of themselves, and that a kill changes nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule
from safetensors.torch import load_file
from torch import Tensor, nn

from gibench.errors import ConfigurationError, StorageError
from gibench.victims import Victim, lenet, load_weights
from gibench.victims.restart import EpochOrder, shift_and_mirror
from gibench.victims.training import VictimTraining, accuracy, fit_victim

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "victims").glob("*.yaml"))
FORMS = {"prior": 0, "score": 1, "tune": 2}

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


class Patches(LightningDataModule):
    """Stand-in for `gibench.data`: 8x8 images in two classes, dark and bright, in splits of 50, 20 and 20."""

    def split(self, name: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Return images, labels and ids."""
        count = 50 if name == "prior" else 20
        source = torch.Generator().manual_seed(FORMS[name])
        labels = torch.arange(count) % 2
        images = (torch.rand(count, 1, 8, 8, generator=source) + labels[:, None, None, None]) / 2
        return images, labels, tuple(f"{name}/{index}" for index in range(count))


def small_victim(seed: int = 0) -> Victim:
    """A network with what makes a restart hard: momentum, BatchNorm's buffers, and dropout."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 2)
    )
    return Victim(network, architecture="small", image_shape=(1, 8, 8), num_classes=2, initialization=f"seed {seed}")


def fit(out: Path, **changes: Any) -> list[Path]:
    """Twelve steps; an epoch is five, so that steps 5 and 10 end one."""
    settings: dict[str, Any] = {
        "victim": small_victim(),
        "data": Patches(),
        "steps": 12,
        "checkpoints": [0, 1, 2, 5, 10],
        "out": out,
        "batch_size": 10,
        "learning_rate": 0.05,
        "augment": True,
        "accelerator": "cpu",
    }
    return fit_victim(**settings | changes)


def contents(paths: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return fit(tmp_path_factory.mktemp("uninterrupted"))


def test_checkpoints_say_what_they_are(uninterrupted: list[Path]) -> None:
    assert [path.name for path in uninterrupted] == [f"small_step{step}.safetensors" for step in (0, 1, 2, 5, 10, 12)]
    for path, step in zip(uninterrupted, (0, 1, 2, 5, 10, 12), strict=True):
        victim = load_weights(small_victim(seed=1), path)
        assert victim.training_steps == step
        assert victim.stage == ("initial" if step == 0 else "trained")
        assert victim.initialization == "seed 0"
        images, labels, _ = Patches().split("score")
        assert victim.test_accuracy == accuracy(victim, images, labels)
        assert victim.get_buffer("network.1.num_batches_tracked") == step
    assert len(set(contents(uninterrupted).values())) == 6
    folder = uninterrupted[0].parent
    assert {file.name for file in folder.iterdir()} == {path.name for path in uninterrupted} | {"training.json", "log"}


def test_training_learns_and_leaves_its_argument_alone(tmp_path: Path) -> None:
    victim = small_victim()
    before = victim.fingerprint()
    state = torch.get_rng_state()
    last = fit(tmp_path, victim=victim, steps=60, checkpoints=[], augment=False)[-1]
    assert load_weights(victim, last).test_accuracy == 1
    assert victim.fingerprint() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_step_zero_is_the_victim_itself(uninterrupted: list[Path]) -> None:
    start = load_weights(small_victim(seed=1), uninterrupted[0])
    assert start.fingerprint()["weights_sha256"] == small_victim().fingerprint()["weights_sha256"]


def test_steps_are_those_of_plain_sgd(tmp_path: Path) -> None:
    """Three steps in a loop of our own, with Nesterov's momentum written out and a milestone after two steps."""
    victim = lenet(image_shape=(1, 8, 8), num_classes=2)
    rate, momentum, decay = 0.3, 0.9, 0.01
    (path,) = fit(
        tmp_path,
        victim=victim,
        steps=3,
        checkpoints=[],
        learning_rate=rate,
        momentum=momentum,
        weight_decay=decay,
        milestones=[0.67],
        augment=False,
    )
    images, labels, _ = Patches().split("prior")
    batches = list(EpochOrder(50, 10, seed=0))
    weights = [parameter.detach().clone() for parameter in victim.parameters()]
    velocity = [torch.zeros_like(weight) for weight in weights]
    for step, batch in enumerate(batches[:3]):
        for parameter, weight in zip(victim.parameters(), weights, strict=True):
            parameter.data.copy_(weight)
        loss = F.cross_entropy(victim(images[batch]), labels[batch])
        gradients = torch.autograd.grad(loss, list(victim.parameters()))
        step_size = rate if step < 2 else rate / 10
        for index, gradient in enumerate(gradients):
            decayed = gradient + decay * weights[index]
            velocity[index] = decayed if step == 0 else momentum * velocity[index] + decayed
            weights[index] = weights[index] - step_size * (decayed + momentum * velocity[index])
    for weight, trained in zip(weights, load_weights(victim, path).parameters(), strict=True):
        torch.testing.assert_close(weight, trained.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kills", [[3], [5], [8], [10], [11], [4, 7, 11]], ids=str)
def test_an_interrupted_training_continues_exactly(
    tmp_path: Path, uninterrupted: list[Path], monkeypatch: pytest.MonkeyPatch, kills: list[int]
) -> None:
    step = VictimTraining.training_step
    for kill in kills:

        def killed(self: VictimTraining, batch: Any, index: int, kill: int = kill) -> Tensor:
            if self.global_step == kill:
                raise RuntimeError("killed")
            return step(self, batch, index)

        monkeypatch.setattr(VictimTraining, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path)
    monkeypatch.setattr(VictimTraining, "training_step", step)
    assert contents(fit(tmp_path)) == contents(uninterrupted)


def test_a_killed_process_continues_exactly(tmp_path: Path, uninterrupted: list[Path]) -> None:
    script = (
        "import os, signal, test_victim_training as t\n"
        "step = t.VictimTraining.training_step\n"
        "def killed(self, batch, index):\n"
        "    if self.global_step == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, batch, index)\n"
        "t.VictimTraining.training_step = killed\n"
        f"t.fit(t.Path({str(tmp_path)!r}))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    run = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False
    )
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert (tmp_path / "resume.ckpt").is_file()
    assert contents(fit(tmp_path)) == contents(uninterrupted)


def test_a_finished_training_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = fit(tmp_path, steps=2, checkpoints=[])
    changed = paths[0].stat().st_mtime_ns
    monkeypatch.setattr(VictimTraining, "training_step", None)
    assert fit(tmp_path, steps=2, checkpoints=[]) == paths
    assert paths[0].stat().st_mtime_ns == changed


def test_the_seed_decides_the_training(tmp_path: Path, uninterrupted: list[Path]) -> None:
    torch.manual_seed(99)
    assert contents(fit(tmp_path / "same")) == contents(uninterrupted)
    other = contents(fit(tmp_path / "other", seed=1))
    assert other["small_step0.safetensors"] == contents(uninterrupted)["small_step0.safetensors"]
    assert other["small_step1.safetensors"] != contents(uninterrupted)["small_step1.safetensors"]


def test_training_goes_on_from_trained_weights(tmp_path: Path, uninterrupted: list[Path]) -> None:
    start = load_weights(small_victim(), uninterrupted[3])
    (path,) = fit(tmp_path, victim=start, steps=3, checkpoints=[])
    assert load_weights(small_victim(), path).training_steps == 5 + 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": [13]}, "must lie in 0..12"),
        ({"checkpoints": [-1]}, "must lie in 0..12"),
        ({"steps": 0, "checkpoints": []}, "be at least 1"),
        ({"victim": lenet()}, "set the victim's image_shape and num_classes"),
        ({"victim": lenet(image_shape=(1, 8, 8), num_classes=1)}, "set the victim's image_shape and num_classes"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


def test_a_folder_holds_one_training(tmp_path: Path) -> None:
    fit(tmp_path, steps=1, checkpoints=[])
    with pytest.raises(ConfigurationError, match="holds a training with other settings"):
        fit(tmp_path, steps=1, checkpoints=[], learning_rate=0.2)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        fit(tmp_path / "file" / "out")


# Order and augmentation.


def test_each_epoch_has_each_image_once_in_an_order_of_its_own() -> None:
    order = EpochOrder(50, 16, seed=3)
    epochs = []
    for epoch in range(3):
        order.set_epoch(epoch)
        batches = list(order)
        assert [len(batch) for batch in batches] == [16, 16, 16, 2]
        assert len(order) == 4
        epochs.append(torch.cat(batches))
        assert torch.equal(epochs[-1].sort().values, torch.arange(50))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_the_epoch_may_be_set_after_the_iterator_was_asked_for() -> None:
    order = EpochOrder(50, 50, seed=3)
    early = iter(order)
    order.set_epoch(2)
    assert torch.equal(next(early), next(iter(order)))


def test_shift_and_mirror_is_a_crop_of_the_padded_image() -> None:
    images = torch.rand(30, 3, 6, 5)
    padded = F.pad(images, (4, 4, 4, 4))
    found = set()
    for image, padding in zip(shift_and_mirror(images), padded, strict=True):
        matches = [
            (row, column, mirrored)
            for row in range(9)
            for column in range(9)
            for mirrored in (False, True)
            if torch.equal(image, _crop(padding, row, column, mirrored=mirrored))
        ]
        assert matches
        found.add(matches[0])
    assert len(found) > 15
    assert {mirrored for _, _, mirrored in found} == {False, True}


def _crop(padded: Tensor, row: int, column: int, *, mirrored: bool) -> Tensor:
    crop = padded[:, row : row + 6, column : column + 5]
    return crop.flip(2) if mirrored else crop


def test_accuracy_is_a_share_in_evaluation_mode() -> None:
    victim = small_victim()
    images, labels, _ = Patches().split("score")
    expected = (copy_in_evaluation(victim)(images).argmax(1) == labels).double().mean()
    assert accuracy(victim, images, labels, batch_size=7) == expected
    assert victim.training
    assert victim.get_buffer("network.1.num_batches_tracked") == 0


def copy_in_evaluation(victim: Victim) -> Callable[[Tensor], Tensor]:
    same = small_victim()
    same.load_state_dict(victim.state_dict())
    return same.eval()


# Shipped configurations.


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_train(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    arrays = {f"{part}_images": draw.integers(0, 256, (20, 32, 32, 3), np.uint8) for part in ("train", "test")}
    labels = {f"{part}_labels": draw.integers(0, 10, 20) for part in ("train", "test")}
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
