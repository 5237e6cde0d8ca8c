"""Laplace likelihood: the sum of absolute differences."""

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Likelihood
from gibench.likelihoods.products import add_up, inner
from gibench.types import Update

FLOOR = 1e-3  # of the noise, or of the update: a difference below weighs in least squares as one of this much


class Laplace(Likelihood):
    """-log Laplace(g; g(x), b) = sum over all parameters of |g(x) - g| / b, up to a constant.

    Args:
        scale: b; the standard deviation is b sqrt(2).
        smoothing: each difference d counts as sqrt(d^2 + smoothing^2) - smoothing; 0 is the exact density, whose
            derivative jumps at d = 0.
    """

    def __init__(self, *, scale: float = 1.0, smoothing: float = 0.0) -> None:
        super().__init__()
        if not scale > 0 or not smoothing >= 0:
            raise ConfigurationError(
                f"scale is {scale} and smoothing {smoothing}; the first is positive, the second >= 0."
            )
        self.scale = scale
        self.smoothing = smoothing

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        return add_up({name: self._distance(simulated[name] - observed[name]) for name in observed}) / self.scale

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`: sqrt(w) d with w = 1 / (b sqrt(d^2 + smoothing^2)), whose parabola lies above (IRLS).

        Without smoothing w is that of |d|, of `absolute_weights`, bounded where d is next to nothing.
        """
        differences = {name: simulated[name] - observed[name] for name in observed}
        if self.smoothing:
            spans = {name: (value.detach().square() + self.smoothing**2).sqrt() for name, value in differences.items()}
            weights = {name: 1 / (self.scale * span) for name, span in spans.items()}
        else:
            weights = absolute_weights(differences, observed, self.scale)
        return {name: weights[name].sqrt() * value for name, value in differences.items()}

    def _distance(self, differences: Tensor) -> Tensor:
        if self.smoothing == 0:
            return differences.abs().flatten(1).sum(1)
        return ((differences.square() + self.smoothing**2).sqrt() - self.smoothing).flatten(1).sum(1)


def absolute_weights(differences: Update, observed: Update, scale: float) -> Update:
    """The constants w for which sum_j w_j d_j^2 / 2 has the slope of sum_j |d_j| / b: w = 1 / (b max(|d|, floor)).

    The floor is 1e-3 of b, or 1e-3 of the root mean square of the whole observed update where that is less (b may be
    no noise but a unit): below it, |d| counts as Huber's parabola.

    Args:
        differences: d, (U, *shape) each.
        observed: the update, with the same names.
        scale: b.
    """
    count = sum(value[0].numel() for value in observed.values())
    typical = (add_up({name: inner(value, value) for name, value in observed.items()}) / count).sqrt()
    floor = FLOOR * torch.where(typical > 0, typical, scale).clamp_max(scale)
    return {
        name: 1 / (scale * torch.maximum(value.detach().abs(), floor.reshape(-1, *[1] * (value.ndim - 1))))
        for name, value in differences.items()
    }
