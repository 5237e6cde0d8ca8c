"""Small real images for inverters: the embedded photographs, shrunk to eight pixels."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from helpers import small_victim
from torch import Tensor
from torch.nn.functional import avg_pool2d

from gibench.clients import FedSGD
from gibench.data import Photographs
from gibench.defenses import Defense
from gibench.types import ThreatModel
from gibench.victims import Victim
from inverters import FeatureSettings, Pairs, UpdateFeatures
from inverters.card import shapes_of


@cache
def _split(name: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    images, _, ids = Photographs().split(name)  # type: ignore[arg-type]
    return avg_pool2d(images, 4), torch.arange(len(images)) % 10, ids


class Shrunk:
    """358 and 119 images (3, 8, 8) in the splits prior and tune, dealt out to ten classes."""

    name = title = "shrunk"

    def split(self, name: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        return _split(name)


def client(*, seed: int = 0, defense: Defense | None = None, victim: Victim | None = None) -> FedSGD:
    known = ThreatModel(
        victim="initial",
        batch_norm="absent",
        defense="known" if defense else "none",
        prior_data="in_distribution",
    )
    return FedSGD(victim or small_victim(seed=seed), defense=defense, threat_model=known)


def pairs(clients: Sequence[FedSGD], settings: FeatureSettings | None = None, **arguments: Any) -> Pairs:
    features = UpdateFeatures(shapes=shapes_of(clients[0]), settings=settings or FeatureSettings(buckets=256))
    return Pairs(**{"clients": clients, "data": Shrunk(), "features": features, "together": 32, **arguments})


def raw_of(made: Pairs, epoch: int = 0) -> list[Tensor]:
    """What an epoch's steps show the network before standardization, step by step."""
    loader = made.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return [made.on_after_batch_transfer(step, 0).features for step in loader]


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(one, other) for one, other in zip(left, right, strict=True))
