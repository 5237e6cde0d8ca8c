"""Limits: what no attack through a prior can exceed, because the prior holds no better image; oracles, of rule R5."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor


class Limit(ABC):
    """Answers each private image with the best image that a prior has for it, update or no update.

    It sees the truth, so that it is an oracle: it is neither an attack nor a floor that an attack must clear. An
    attack far below its prior's limit fails at its search; one close to a low limit is held back by its prior.
    """

    @abstractmethod
    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the best images for `images`, of their shape, in [0, 1].

        Args:
            images: (U, B, C, H, W) in [0, 1].
            labels: (U, B), int64.

        Raises:
            ConfigurationError: the prior does not draw images of this shape, or has no such class.
        """

    @abstractmethod
    def check(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """Raise ConfigurationError unless the prior draws images (C, H, W) and has this many classes, if any."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """What decides the answers, in plain types, for the manifest: a run goes on only where it is the same."""
