"""Small victims and batches that many tests share."""

import os
import signal
import time

import torch
from lightning import LightningDataModule
from torch import nn

from gibench.attacks import Attack
from gibench.search import Generator
from gibench.types import Batch, Observation, Reconstruction
from gibench.victims import BinaryLogits, Victim, seeded


def small_victim(*, batch_norm: bool = False, num_classes: int = 10, seed: int = 0, side: int = 8) -> Victim:
    """A smooth convolutional net of a few hundred parameters for (3, side, side) images, which normalizes."""

    def build() -> nn.Module:
        layers = [nn.Conv2d(3, 4, 3, stride=2, padding=1), *([nn.BatchNorm2d(4)] if batch_norm else [])]
        return nn.Sequential(*layers, nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * (side // 2) ** 2, num_classes))

    return Victim(
        seeded(build, seed),
        architecture="small",
        image_shape=(3, side, side),
        num_classes=num_classes,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        initialization=f"default, seed {seed}",
    )


def fully_connected(*, num_classes: int = 10, seed: int = 0, side: int = 8) -> Victim:
    """A ReLU net whose first layer sees the image."""
    pixels = 3 * side * side

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, num_classes))

    return Victim(
        seeded(build, seed),
        architecture="fully connected",
        image_shape=(3, side, side),
        num_classes=num_classes,
        initialization=f"default, seed {seed}",
    )


def leaky_chain(*, channels: int = 12, num_classes: int = 10, binary: bool = False) -> Victim:
    """A chain of two convolutions without bias and an invertible activation, whose head sees 192 features."""

    def build() -> nn.Module:
        first = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        second = nn.Conv2d(channels, 12, 3, padding=1, bias=False)
        body = [first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), nn.Flatten()]
        one_logit = [nn.Linear(192, 1, bias=False), BinaryLogits(num_classes)]
        return nn.Sequential(*body, *(one_logit if binary else [nn.Linear(192, num_classes)]))

    return Victim(
        seeded(build, 0),
        architecture="leaky chain",
        image_shape=(3, 8, 8),
        num_classes=num_classes,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        initialization="default, seed 0",
    )


class SmallGenerator(Generator):
    """6 numbers -> (4, 2, 2) -> (4, 4, 4) -> (3, side, side), smooth; a class shifts the first features."""

    def __init__(self, *, num_classes: int | None = None, side: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.latent_shape, self.image_shape, self.num_classes = (6,), (3, side, side), num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(6, 16)
            self.second = nn.Sequential(nn.ConvTranspose2d(4, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.Tanh())
            self.third = nn.ConvTranspose2d(4, 3, 4, side // 4, 1) if side > 4 else nn.Conv2d(4, 3, 1)
            if num_classes is not None:
                self.embedding = nn.Linear(num_classes, 16, bias=False)
        self.eval().requires_grad_(False)

    @property
    def depth(self) -> int:
        return 3

    def stage(self, index: int, features: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        if index == 0:
            flat = self.first(features) if classes is None else self.first(features) + self.embedding(classes)
            return torch.tanh(2 * flat).unflatten(1, (4, 2, 2))
        return self.second(features) if index == 1 else torch.sigmoid(4 * self.third(features))


def batch_of(updates: int, size: int, *, side: int = 8, seed: int = 0) -> Batch:
    """Random smooth images with random labels; update u is the same whatever `updates` is."""
    images, labels = [], []
    for update in range(updates):
        source = torch.Generator().manual_seed(1000 * seed + update)
        coarse = torch.rand(size, 3, side // 2, side // 2, generator=source)
        images.append(nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear").clamp(0, 1))
        labels.append(torch.randint(10, (size,), generator=source))
    return Batch(
        images=torch.stack(images),
        labels=torch.stack(labels),
        image_ids=tuple(tuple(f"test/{u}/{b}" for b in range(size)) for u in range(updates)),
        update_ids=tuple(f"update-{u}" for u in range(updates)),
    )


class SmallData(LightningDataModule):
    """The attacker's own images: like those of `batch_of`, but others."""

    image_shape = (3, 8, 8)
    num_classes = 10

    def __init__(self, count: int = 300) -> None:
        super().__init__()
        self.count = count

    def split(self, name: str) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
        assert name == "prior"
        batch = batch_of(self.count, 1, seed=7)
        return batch.images[:, 0], batch.labels[:, 0], tuple(ids[0] for ids in batch.image_ids)


class Interrupted(Attack):
    """An attack during which somebody presses Ctrl-C."""

    def forward(self, observation: Observation) -> Reconstruction:
        raise KeyboardInterrupt


class Terminated(Attack):
    """An attack during which the process is asked to stop; it would go on for ten seconds."""

    def forward(self, observation: Observation) -> Reconstruction:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        raise AssertionError("SIGTERM was swallowed")
