"""Random tensors in the shape of an update: row u from `seeds[u]` and the parameter's name alone (rule R17)."""

from collections.abc import Sequence

import torch

from gibench.seeding import normal_rows, uniform_rows
from gibench.types import Update


def normal_like(update: Update, seeds: Sequence[int]) -> Update:
    """N(0, 1)."""
    return {name: normal_rows(value.shape[1:], seeds, "noise", name).to(value) for name, value in update.items()}


def laplace_like(update: Update, seeds: Sequence[int]) -> Update:
    """Laplace(0, 1), by inversion of its distribution function."""
    uniform = {name: uniform_rows(value.shape[1:], seeds, "noise", name) - 0.5 for name, value in update.items()}
    return {
        name: (-torch.sign(value) * torch.log1p(-2 * value.abs().clamp_max(0.5 - 2**-54))).to(update[name])
        for name, value in uniform.items()
    }


def kept_like(update: Update, seeds: Sequence[int], *, pruned: float) -> Update:
    """1 where an entry is kept, with probability 1 - pruned; else 0."""
    return {
        name: (uniform_rows(value.shape[1:], seeds, "mask", name) >= pruned).to(value) for name, value in update.items()
    }
