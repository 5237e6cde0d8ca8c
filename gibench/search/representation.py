"""How images are written as the numbers that are searched."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor, nn

from gibench.errors import ConfigurationError
from gibench.needs import Needs
from gibench.types import Observation
from gibench.victims import Victim


class Given(NamedTuple):
    """What a representation may read besides its variable, of the same R rows.

    labels: (R, B), or probabilities (R, B, K), of the images; None where nobody says.
    kept: what it holds fixed in this search, name -> (R, B, ...); see `Representation.follow`.
    """

    labels: Tensor | None = None
    kept: Mapping[str, Tensor] = MappingProxyType({})


NOTHING_GIVEN = Given()


class Representation(nn.Module, ABC):
    """A differentiable map from a variable (R, B, ...) to images (R, B, C, H, W), for R rows of B images.

    Each image has its own part of the variable, so that the order of images can change in both alike.
    """

    needs = Needs()
    encodes = True
    """Whether a warm start can be given to it, by `encode`."""

    penalized = False
    """Whether `penalty` adds to the objective."""

    @abstractmethod
    def numbers(self, image_shape: Sequence[int]) -> int:
        """How many unknowns stand for an image (C, H, W); for the memory budget and the estimate of cost."""

    def passing(self, image_shape: Sequence[int]) -> int:
        """How many further numbers `decode` and its derivative hold for an image; for the memory budget."""
        return 0

    @abstractmethod
    def start(self, observation: Observation, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """Return the first iterate (R, B, ...), row r from `seeds[r]` alone."""

    @abstractmethod
    def decode(self, variable: Tensor, victim: Victim, given: Given = NOTHING_GIVEN) -> Tensor:
        """Return the pixels that a variable stands for, (R, B, C, H, W); differentiable, twice."""

    @abstractmethod
    def encode(self, images: Tensor, victim: Victim) -> Tensor:
        """Return the admissible variable whose pixels are nearest to images (R, B, C, H, W); for warm starts."""

    def follow(
        self, before: "Representation", variable: Tensor, victim: Victim, given: Given
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Go on from where a search of another representation ended: the first iterate, and what is held fixed.

        Args:
            before: the other representation.
            variable: its, (R, B, ...), with what was `given` to it.
            victim: that is attacked.
            given: as `decode` got it.
        """
        return self.encode(before.decode(variable, victim, given), victim), {}

    def penalty(self, variable: Tensor) -> Tensor | None:
        """Return rows (R, M), half of whose squares are -log p of the variable; None where the images say it all."""
        return None

    def project(self, variable: Tensor, victim: Victim) -> Tensor:
        """Return the nearest admissible variable; here, any is."""
        return variable

    def check(self, observation: Observation) -> None:
        """Raise, before anything is computed, where images of this observation have no such form."""

    def check_follows(self, before: "Representation") -> None:
        """Raise, before anything is computed, where `follow` could not go on from `before`."""
        if not self.encodes:
            raise ConfigurationError(
                f"{type(self).__name__} cannot go on from {type(before).__name__}; let it follow a search of the same "
                "generator, or use a generator that encodes images."
            )
