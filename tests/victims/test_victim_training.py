"""Training a victim: its checkpoints, what they say of themselves, and that a kill changes nothing."""

import copy
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from gibench.errors import ConfigurationError, StorageError, WeightsError
from gibench.victims import Victim, lenet, load_weights
from gibench.victims.checkpoints import accuracy
from gibench.victims.restart import EpochOrder
from gibench.victims.training import VictimTraining, fit_victim

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


@pytest.fixture(scope="module", autouse=True)
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A training that kills its process at step 8, and its folder; its seconds of imports pass during other tests."""
    folder = tmp_path_factory.mktemp("killed")
    script = (
        "import os, signal, test_victim_training as t\n"
        "step = t.VictimTraining.training_step\n"
        "def killed(self, batch, index):\n"
        "    if self.global_step == 8: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, batch, index)\n"
        "t.VictimTraining.training_step = killed\n"
        f"t.fit(t.Path({str(folder)!r}))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE) as process:
        yield folder, process
        process.kill()


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


class Code:
    """Unpickling it would call a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.abort, ()


def _stored(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content", [b"", _stored({"epoch": 1})[:-100], _stored(Code())], ids=["empty", "truncated", "code"]
)
def test_a_damaged_state_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "resume.ckpt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"resume\.ckpt is no complete state of a training; delete it"):
        fit(tmp_path)


def test_it_says_nothing_beside_its_bar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lightning.pytorch")
    fit(tmp_path, steps=1, checkpoints=[])
    assert not caplog.records
    assert logging.getLogger("lightning.pytorch").level == logging.INFO


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


def test_accuracy_is_a_share_in_evaluation_mode() -> None:
    victim = small_victim()
    images, labels, _ = Patches().split("score")
    expected = (copy.deepcopy(victim).eval()(images).argmax(1) == labels).double().mean()
    assert accuracy(victim, images, labels, batch_size=7) == expected
    assert victim.training
    assert victim.get_buffer("network.1.num_batches_tracked") == 0


def test_a_killed_process_continues_exactly(
    killed: tuple[Path, subprocess.Popen[bytes]], uninterrupted: list[Path]
) -> None:
    folder, process = killed
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert (folder / "resume.ckpt").is_file()
    assert contents(fit(folder)) == contents(uninterrupted)
