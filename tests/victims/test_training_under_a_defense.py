"""Training on what defended clients send: the step is that gradient, and a kill changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from gibench.clients import FedSGD
from gibench.defenses import DPSGD, Defense, GaussianNoise, MagnitudePruning, Precode
from gibench.errors import ConfigurationError
from gibench.runs.training import parse_training
from gibench.types import Batch
from gibench.victims import VariationalBottleneck, Victim, lenet, load_weights
from gibench.victims.checkpoints import accuracy
from gibench.victims.defended import released_gradient
from gibench.victims.training import VictimTraining, fit_victim

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]

SHAPE = (1, 8, 8)


class DarkAndBright(LightningDataModule):
    """Stand-in for `gibench.data`: 8x8 images in two classes, in splits of 50, 20 and 20."""

    def split(self, name: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """Return images, labels and ids."""
        count = 50 if name == "prior" else 20
        source = torch.Generator().manual_seed(len(name))
        labels = torch.arange(count) % 2
        images = (torch.rand(count, *SHAPE, generator=source) + labels[:, None, None, None]) / 2
        return images, labels, tuple(f"{name}/{index}" for index in range(count))


def network(*layers: nn.Module) -> Victim:
    """A victim of these layers."""
    return Victim(nn.Sequential(*layers), architecture="small", image_shape=SHAPE, num_classes=2, initialization="test")


def smooth() -> Victim:
    """A network of a convolution and a linear layer."""
    torch.manual_seed(0)
    return network(nn.Conv2d(1, 4, 3, stride=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(36, 2))


def fit(out: Path, **changes: Any) -> list[Path]:
    """Twelve steps; an epoch is five."""
    settings: dict[str, Any] = {
        "victim": smooth(),
        "data": DarkAndBright(),
        "steps": 12,
        "checkpoints": [5, 10],
        "out": out,
        "batch_size": 10,
        "learning_rate": 0.05,
        "accelerator": "cpu",
    }
    return fit_victim(**settings | changes)


def weights_after(path: Path) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in load_weights(smooth(), path).named_parameters()}


@pytest.mark.parametrize("defense", [GaussianNoise(sigma=0), DPSGD(clip=1e6, noise_multiplier=0)], ids=str)
def test_a_defense_that_changes_nothing_changes_nothing(tmp_path: Path, defense: Defense) -> None:
    """Momentum, decay, schedule and augmentation included."""
    plain = fit(tmp_path / "plain", augment=True)
    defended = fit(tmp_path / "defended", augment=True, defense=defense)
    for before, after in zip(plain, defended, strict=True):
        for name, value in weights_after(before).items():
            torch.testing.assert_close(weights_after(after)[name], value, rtol=1e-5, atol=1e-6)


def test_one_step_is_the_gradient_that_is_sent(tmp_path: Path) -> None:
    """A step of rate 1 from the start is what the client of the benchmark sends, pruned alike."""
    defense, victim = MagnitudePruning(pruned=0.9), smooth()
    settings = {"learning_rate": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "milestones": []}
    (path,) = fit(tmp_path, steps=1, checkpoints=[], batch_size=50, defense=defense, **settings)
    images, labels, ids = DarkAndBright().split("prior")
    batch = Batch(images=images[None], labels=labels[None], image_ids=(ids,), update_ids=("all",))
    sent = FedSGD(victim, defense=defense)(batch).update
    assert 0 < sum(int(value.count_nonzero()) for value in sent.values()) < 20
    for name, before in victim.named_parameters():
        torch.testing.assert_close(before.detach() - weights_after(path)[name], sent[name][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("defense", [GaussianNoise(sigma=0.1), DPSGD(clip=0.5, noise_multiplier=1)], ids=str)
@pytest.mark.parametrize("kill", [3, 8])
def test_a_killed_training_continues_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defense: Defense, kill: int
) -> None:
    step = VictimTraining.training_step

    def killed(self: VictimTraining, batch: Any, index: int) -> Tensor:
        if self.global_step == kill:
            raise RuntimeError("killed")
        return step(self, batch, index)

    monkeypatch.setattr(VictimTraining, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "killed", defense=defense)
    monkeypatch.setattr(VictimTraining, "training_step", step)
    continued, whole = (fit(tmp_path / name, defense=defense) for name in ("killed", "whole"))
    assert [path.read_bytes() for path in continued] == [path.read_bytes() for path in whole]


def test_noise_differs_from_step_to_step_and_follows_from_the_seed() -> None:
    victim, defense = smooth(), GaussianNoise(sigma=1)
    images, labels, _ = DarkAndBright().split("prior")
    first, again, other = (released_gradient(victim, defense, images, labels, seed=seed) for seed in (1, 1, 2))
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert (value != other[name]).all()


def test_precode_trains(tmp_path: Path) -> None:
    """Its loss on the training images falls, and it is scored without noise."""
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), VariationalBottleneck(32, size=8), nn.Linear(32, 2))
    victim = network(*layers)
    (path,) = fit(tmp_path, victim=victim, steps=100, checkpoints=[], learning_rate=0.02, defense=Precode())
    trained = load_weights(victim, path)
    images, labels, _ = DarkAndBright().split("prior")
    before, after = (F.cross_entropy(model.eval()(images), labels).item() for model in (victim, trained))
    assert after < before / 2
    assert trained.stage == "trained"
    held_out, truth, _ = DarkAndBright().split("score")
    assert trained.test_accuracy == accuracy(trained, held_out, truth)
    changed = [name for name, value in trained.named_parameters() if not torch.equal(value, victim.get_parameter(name))]
    assert len(changed) == len(list(victim.parameters()))


def test_dropout_is_off_where_clients_send_it_and_the_mode_stays() -> None:
    dropped = network(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 2)).train()
    plain = network(nn.Flatten(), nn.Identity(), nn.Linear(64, 2))
    plain.load_state_dict(dropped.state_dict())
    images, labels, _ = DarkAndBright().split("prior")
    found, expected = (
        released_gradient(victim, GaussianNoise(sigma=0), images, labels, seed=0) for victim in (dropped, plain)
    )
    for name, value in expected.items():
        assert torch.equal(found[name], value)
    assert dropped.training
    assert dropped.network[1].training


def test_the_folder_says_under_which_defense(tmp_path: Path) -> None:
    fit(tmp_path, steps=1, checkpoints=[], defense=GaussianNoise(sigma=0.5))
    assert json.loads((tmp_path / "training.json").read_text())["defense"] == "GaussianNoise(sigma=0.5)"
    for other in (GaussianNoise(sigma=0.25), None):
        with pytest.raises(ConfigurationError, match="other settings"):
            fit(tmp_path, steps=1, checkpoints=[], defense=other)


def test_the_fingerprint_says_under_which_defense(tmp_path: Path) -> None:
    """Not before the first step, not without a defense, and once where such a victim is trained further."""
    settings: dict[str, Any] = {"steps": 1, "checkpoints": [0]}
    defense = GaussianNoise(sigma=0.5)
    start, after = (load_weights(smooth(), path) for path in fit(tmp_path / "first", defense=defense, **settings))
    (_, again), (_, plain) = (
        (load_weights(smooth(), path) for path in fit(tmp_path / name, victim=victim, defense=under, **settings))
        for name, victim, under in (("again", after, defense), ("plain", smooth(), None))
    )
    assert start.fingerprint()["initialization"] == plain.fingerprint()["initialization"] == "test"
    assert after.fingerprint()["initialization"] == "test, trained under GaussianNoise(sigma=0.5)"
    assert again.initialization == after.initialization
    assert again.training_steps == 2


def test_a_configuration_names_the_defense(tmp_path: Path) -> None:
    tree = {
        "victim": {"class_path": "gibench.victims.lenet"},
        "data": {"class_path": "gibench.data.CIFAR10"},
        "steps": 1,
        "checkpoints": [],
        "defense": {"class_path": "gibench.defenses.GaussianNoise", "init_args": {"sigma": 0.1}},
    }
    parsed = parse_training(tree, out=tmp_path).arguments
    assert parsed.defense.class_path == "gibench.defenses.GaussianNoise"
    assert parsed.defense.init_args.sigma == 0.1
    with pytest.raises(ConfigurationError, match="defense"):
        parse_training({**tree, "defense": {"class_path": "gibench.likelihoods.Cosine"}}, out=tmp_path)


@pytest.mark.parametrize(
    ("victim", "defense", "message"),
    [
        (network(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2)), GaussianNoise(sigma=1), "BatchNorm"),
        (lenet(image_shape=SHAPE, num_classes=2), Precode(), "no variational bottleneck"),
    ],
    ids=["batch norm", "no bottleneck"],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, victim: Victim, defense: Defense, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit(tmp_path / "new", victim=victim, defense=defense)
    assert not (tmp_path / "new").exists()
