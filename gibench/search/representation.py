"""How images are written as the numbers that are searched."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from gibench.needs import Needs
from gibench.types import Observation
from gibench.victims import Victim


class Representation(ABC):
    """A differentiable map from a variable (R, B, ...) to images (R, B, C, H, W), for R rows of B images.

    Each image has its own part of the variable, so that the order of images can change in both alike.
    """

    needs = Needs()

    @abstractmethod
    def numbers(self, image_shape: Sequence[int]) -> int:
        """How many unknowns stand for an image (C, H, W); for the memory budget and the estimate of cost."""

    @abstractmethod
    def start(self, observation: Observation, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """Return the first iterate (R, B, ...), row r from `seeds[r]` alone."""

    @abstractmethod
    def decode(self, variable: Tensor, victim: Victim) -> Tensor:
        """Return the pixels that a variable stands for, (R, B, C, H, W); differentiable, twice."""

    @abstractmethod
    def encode(self, images: Tensor, victim: Victim) -> Tensor:
        """Return the admissible variable whose pixels are nearest to images (R, B, C, H, W); for warm starts."""

    def project(self, variable: Tensor, victim: Victim) -> Tensor:
        """Return the nearest admissible variable; here, any is."""
        return variable

    def check(self, observation: Observation) -> None:  # noqa: B027 - most have nothing to check
        """Raise, before anything is computed, where images of this observation have no such form."""
