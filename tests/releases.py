"""Defenses on updates of a tiny victim: what many clients with the same images release."""

from collections.abc import Callable

import numpy as np
import torch
from helpers import batch_of, fully_connected, small_victim
from numpy.typing import NDArray

from gibench.clients import FedSGD
from gibench.defenses import (
    ATS,
    DPSGD,
    Defense,
    GaussianNoise,
    InstaHide,
    LaplaceNoise,
    MagnitudePruning,
    MixUp,
    Precode,
    Private,
    Quantization,
    RandomPruning,
    SignCompression,
    Soteria,
)
from gibench.types import Batch, Observation, ThreatModel, Update
from gibench.victims import Victim, precode_lenet

Array = NDArray[np.float64]
SMALL = (3, 8, 8)
DEFENSES: dict[str, tuple[Defense, Callable[[], Victim], int]] = {
    "ATS": (ATS(), small_victim, 1),
    "DPSGD": (DPSGD(clip=2.0, noise_multiplier=0.01), small_victim, 2),
    "GaussianNoise": (GaussianNoise(sigma=0.02), small_victim, 1),
    "InstaHide": (InstaHide(images=2), small_victim, 4),
    "LaplaceNoise": (LaplaceNoise(scale=0.02), small_victim, 1),
    "MagnitudePruning": (MagnitudePruning(pruned=0.9), small_victim, 1),
    "MagnitudePruning, global": (MagnitudePruning(pruned=0.9, scope="global"), small_victim, 1),
    "MixUp": (MixUp(images=2), small_victim, 4),
    "Precode": (Precode(), lambda: precode_lenet(image_shape=SMALL, initialization="default"), 1),
    "Quantization": (Quantization(bits=3), small_victim, 1),
    "Quantization, stochastic": (Quantization(bits=3, rounding="stochastic"), small_victim, 1),
    "RandomPruning": (RandomPruning(pruned=0.5), small_victim, 1),
    "RandomPruning, gaussian": (RandomPruning(pruned=0.5, noise="gaussian", scale=0.02), small_victim, 1),
    "RandomPruning, laplace": (RandomPruning(pruned=0.5, noise="laplace", scale=0.02), small_victim, 1),
    "SignCompression": (SignCompression(), small_victim, 1),
    "Soteria": (Soteria(pruned=0.5), fully_connected, 1),
}
"""One of each kind, with a victim and a batch size that it takes."""


def repeated(updates: int) -> Batch:
    """The same private batch behind each update, so that what differs was drawn."""
    one = batch_of(1, 2).to(torch.float64)
    return Batch(
        images=one.images.expand(updates, -1, -1, -1, -1),
        labels=one.labels.expand(updates, -1),
        image_ids=one.image_ids * updates,
        update_ids=tuple(f"again-{number}" for number in range(updates)),
    )


def observed(defense: Defense, updates: int = 150, *, told: bool = True) -> tuple[Observation, Update]:
    """What is observed, and the same updates without the defense."""
    randomness = "known" if told else "unknown"
    known = ThreatModel(victim="initial", batch_norm="absent", defense="known", defense_randomness=randomness)
    client, batch = FedSGD(small_victim(), defense=defense, threat_model=known).double(), repeated(updates)
    return client(batch), client.simulate(batch.images, batch.labels)


def flat(update: Update) -> Array:
    """(U, all entries)."""
    return torch.cat([value.flatten(1) for value in update.values()], 1).double().numpy()


def released(defense: Defense, update: Update, seeds: int = 1) -> Update:
    """What the defense makes of a given update (U, ...)."""
    rows = len(next(iter(update.values())))
    images, labels = torch.zeros(rows, 1, 3, 8, 8), torch.zeros(rows, 1, dtype=torch.int64)
    own = tuple(range(seeds, seeds + rows))
    return defense.sample(Private(images, labels, own, small_victim(), lambda *_: update)).update


def others(observation: Observation) -> list[Update]:
    """The updates of other images than the private ones, U of each."""
    labels = observation.labels
    source = torch.Generator().manual_seed(5)
    shape = (*labels.shape, *observation.image_shape)  # type: ignore[union-attr]
    return [observation.simulate(torch.rand(shape, generator=source, dtype=torch.float64), labels) for _ in range(3)]
