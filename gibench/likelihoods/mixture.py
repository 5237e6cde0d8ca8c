"""Mixture likelihood of random pruning with noise, for an attacker who does not know which entries were pruned."""

import math
from typing import Literal

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Likelihood
from gibench.likelihoods.products import add_up
from gibench.types import Update


class Mixture(Likelihood):
    """-sum_j log[(1 - p) f(g_j - g_j(x)) + p f(g_j)] with the noise's density f, up to a constant.

    Each entry was kept with probability 1 - p or pruned, noise was added to both. The constant is that of f's
    normalization, so that the figure compares with `Gaussian` and `Laplace` of the same scale.

    Args:
        noise: f, "gaussian" or "laplace".
        scale: standard deviation of the Gaussian, b of the Laplace law.
        pruned: p, in [0, 1).
    """

    def __init__(self, *, noise: Literal["gaussian", "laplace"], scale: float, pruned: float) -> None:
        super().__init__()
        if not scale > 0 or not 0 <= pruned < 1:
            raise ConfigurationError(
                f"scale is {scale} and pruned {pruned}; the first is positive, the second in [0, 1)."
            )
        if noise not in ("gaussian", "laplace"):
            raise ConfigurationError(f"noise is {noise!r}; choose 'gaussian' or 'laplace'.")
        self.noise: Literal["gaussian", "laplace"] = noise
        self.scale = scale
        self.pruned = pruned

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        return add_up({name: self._entries(simulated[name], value) for name, value in observed.items()})

    def _entries(self, simulated: Tensor, observed: Tensor) -> Tensor:
        kept = math.log1p(-self.pruned) - self._energy(observed - simulated)
        if self.pruned == 0:
            return -kept.flatten(1).sum(1)
        pruned = math.log(self.pruned) - self._energy(observed)
        return -torch.logaddexp(kept, pruned).flatten(1).sum(1)

    def _energy(self, noise: Tensor) -> Tensor:
        return noise.square() / (2 * self.scale**2) if self.noise == "gaussian" else noise.abs() / self.scale
