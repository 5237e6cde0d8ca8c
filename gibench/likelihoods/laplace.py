"""Laplace likelihood: the sum of absolute differences."""

from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Likelihood
from gibench.likelihoods.products import add_up
from gibench.types import Update


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

    def _distance(self, differences: Tensor) -> Tensor:
        if self.smoothing == 0:
            return differences.abs().flatten(1).sum(1)
        return ((differences.square() + self.smoothing**2).sqrt() - self.smoothing).flatten(1).sum(1)
