"""Likelihood of a quantized update: each entry lies in a known interval."""

from typing import Literal

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Likelihood
from gibench.likelihoods.products import add_up
from gibench.types import Update

FLOOR = 1e-3  # of a step: a smaller distance weighs in least squares as one of this much


class Interval(Likelihood):
    """Entries on a grid of step Delta_l, where g_j(x) was rounded to g_j.

    "nearest": g_j(x) lies uniformly within Delta_l / 2 of g_j; outside, (|g_j(x) - g_j| - Delta_l / 2)^2 / Delta_l^2.
    "stochastic": g_j(x) was rounded up or down with the probabilities that keep its mean, so that
        p(g_j | x) = 1 - |g_j(x) - g_j| / Delta_l within one step. -log of it is exact up to 1 - `tail`, from where on
        it continues as a parabola with its value and slope, so that far images still feel where to go.

    Delta_l is read off the observed update: max |g_l| / (2^(bits - 1) - 1), which both quantizers send exactly. A
    tensor that is all zero has no grid; it says nothing.

    Args:
        bits: of each entry, 2 or more.
        rounding: as above.
        tail: probability below which the parabola begins.
    """

    def __init__(self, *, bits: int, rounding: Literal["nearest", "stochastic"], tail: float = 1e-2) -> None:
        super().__init__()
        if bits < 2 or not 0 < tail < 1 or rounding not in ("nearest", "stochastic"):
            raise ConfigurationError(
                f"bits is {bits}, rounding {rounding!r}, tail {tail}; choose bits >= 2, 'nearest' or "
                "'stochastic', and a tail in (0, 1)."
            )
        self.bits = bits
        self.rounding = rounding
        self.tail = tail

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        return add_up({name: self._entries(simulated[name], value) for name, value in observed.items()})

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`; in steps d = (g(x) - g) / Delta.

        "nearest": sqrt(2) sign(d) (|d| - 1/2)_+, exactly. "stochastic": sqrt(w) d with w = phi'(|d|) / |d| of the
        figure phi, |d| at least 1e-3 in the denominator (IRLS). Beyond half a step phi bends up more than its parabola:
        there a step has to be judged by the figure itself.
        """
        return {name: self._rows(simulated[name], value) for name, value in observed.items()}

    def compared(self, observed: Update) -> Update:
        """See `Likelihood`: tensors that have a grid."""
        return {name: (grid_step(value, self.bits) > 0).expand_as(value) for name, value in observed.items()}

    def _gaps(self, simulated: Tensor, observed: Tensor) -> Tensor:
        steps = grid_step(observed, self.bits)
        return torch.where(steps > 0, (simulated - observed) / steps.where(steps > 0, 1.0), 0.0)

    def _rows(self, simulated: Tensor, observed: Tensor) -> Tensor:
        gaps = self._gaps(simulated, observed)
        if self.rounding == "nearest":
            return 2**0.5 * (gaps - gaps.clamp(-0.5, 0.5))
        distance = gaps.detach().abs()
        beyond = (distance - (1 - self.tail)).clamp_min(0)
        slope = 1 / (1 - distance.clamp_max(1 - self.tail)) + beyond / self.tail**2
        return (slope / distance.clamp_min(FLOOR)).sqrt() * gaps

    def _entries(self, simulated: Tensor, observed: Tensor) -> Tensor:
        distance = self._gaps(simulated, observed).abs()
        if self.rounding == "nearest":
            return (distance - 0.5).clamp_min(0).square().flatten(1).sum(1)
        inside = -torch.log1p(-distance.clamp_max(1 - self.tail))
        beyond = (distance - (1 - self.tail)).clamp_min(0)
        outside = beyond / self.tail + (beyond / self.tail).square() / 2
        return (inside + outside).flatten(1).sum(1)


def grid_step(update: Tensor, bits: int) -> Tensor:
    """Delta = max |g| / (2^(bits - 1) - 1) of each update (U, *shape): (U, 1, ...)."""
    step: Tensor = update.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
    return step.reshape(-1, *[1] * (update.ndim - 1))
