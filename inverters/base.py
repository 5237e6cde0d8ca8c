"""The interface of all inverters: features of an update -> its images."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Slots(NamedTuple):
    """What an inverter says of U updates.

    images: (U, S, C, H, W), in [0, 1] up to what a linear output exceeds; those of B images are the first B.
    existence: (U, S), the logit that there are more than s images, for slot s = 0, 1, ..; None where B is fixed.
    """

    images: Tensor
    existence: Tensor | None = None


class Inverter(nn.Module, ABC):
    """A network from features (U, T, K) to S slots.

    A subclass takes, keyword-only, `tokens` (T), `width` (K), `image_shape` and `slots` (S), and what else it has.
    """

    @abstractmethod
    def forward(self, features: Tensor) -> Slots:
        """Return the slots of U updates, from (U, T, K)."""
