"""Uniform quantization of each tensor, to the nearest level or at random (QSGD; Alistarh et al., NeurIPS 2017)."""

from typing import Literal

import torch

from gibench.defenses.base import Defense, Private, Release
from gibench.errors import ConfigurationError
from gibench.likelihoods import Hypothesis, Interval, Likelihood
from gibench.likelihoods.interval import grid_step
from gibench.seeding import uniform_rows
from gibench.types import Observation


class Quantization(Defense):
    """g_l = Delta_l round(g_l(x) / Delta_l) with Delta_l = max |g_l(x)| / (2^(bits - 1) - 1), for each tensor l.

    Args:
        bits: of each entry, 2 or more: 2^bits - 1 levels, symmetric about 0.
        rounding: "nearest", or "stochastic": up with the probability that keeps the mean.
    """

    def __init__(self, *, bits: int, rounding: Literal["nearest", "stochastic"] = "nearest") -> None:
        super().__init__()
        if bits < 2:
            raise ConfigurationError(f"bits is {bits}; quantize to 2 or more, or use SignCompression.")
        if rounding not in ("nearest", "stochastic"):
            raise ConfigurationError(f"rounding is {rounding!r}; choose 'nearest' or 'stochastic'.")
        self.bits = bits
        self.rounding: Literal["nearest", "stochastic"] = rounding

    def sample(self, private: Private) -> Release:
        """See `Defense`."""
        released = {}
        for name, value in private.simulate(private.images, private.labels).items():
            steps = grid_step(value, self.bits)
            places = torch.where(steps > 0, value / steps, 0.0)
            if self.rounding == "nearest":
                levels = places.round()
            else:
                uniform = uniform_rows(value.shape[1:], private.seeds, "round", name).to(value)
                levels = places.floor() + (uniform < places - places.floor())  # 0 stays 0, however numbers are rounded
            levels = levels.clamp(1 - 2 ** (self.bits - 1), 2 ** (self.bits - 1) - 1)
            released[name] = levels * steps
        return Release(released, {})

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`."""
        return Hypothesis(Interval(bits=self.bits, rounding=self.rounding), observation)
