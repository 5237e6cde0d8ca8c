"""Mixture likelihood of random pruning with noise, for an attacker who does not know which entries were pruned."""

import math
from typing import Literal

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Likelihood
from gibench.likelihoods.laplace import absolute_weights
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

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`: sqrt(q) times the noise's rows, with q the chance that an entry was kept (one step of EM).

        By Jensen's inequality the parabola lies above; that of Laplace noise is `absolute_weights`'.
        """
        differences = {name: simulated[name] - value for name, value in observed.items()}
        if self.noise == "gaussian":
            weights = {name: torch.full_like(value, self.scale**-2) for name, value in observed.items()}
        else:
            weights = absolute_weights(differences, observed, self.scale)
        chances = {name: self._kept(simulated[name].detach(), value) for name, value in observed.items()}
        return {name: (chances[name] * weights[name]).sqrt() * value for name, value in differences.items()}

    def _entries(self, simulated: Tensor, observed: Tensor) -> Tensor:
        kept, pruned = self._logarithms(simulated, observed)
        return -(kept if self.pruned == 0 else torch.logaddexp(kept, pruned)).flatten(1).sum(1)

    def _kept(self, simulated: Tensor, observed: Tensor) -> Tensor:
        kept, pruned = self._logarithms(simulated, observed)
        return torch.sigmoid(kept - pruned)

    def _logarithms(self, simulated: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Log of (1 - p) f(g - g(x)) and of p f(g), up to f's constant."""
        kept = math.log1p(-self.pruned) - self._energy(observed - simulated)
        prior = math.log(self.pruned) if self.pruned else -math.inf
        return kept, prior - self._energy(observed)

    def _energy(self, noise: Tensor) -> Tensor:
        return noise.square() / (2 * self.scale**2) if self.noise == "gaussian" else noise.abs() / self.scale
