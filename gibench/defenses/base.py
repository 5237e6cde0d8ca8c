"""The defense: a conditional density p(g | x) of what a client releases, which can be sampled and scored."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from gibench.likelihoods import Hypothesis, Likelihood
from gibench.types import Observation, Simulate, Update
from gibench.victims import Victim


class Private(NamedTuple):
    """What U clients have when they defend themselves.

    images: (U, B, C, H, W) in [0, 1]. labels: (U, B). seeds: U, of what is drawn for each update, and for nothing else.
    victim: the model. simulate: the update that the client would send without a defense.
    """

    images: Tensor
    labels: Tensor
    seeds: tuple[int, ...]
    victim: Victim
    simulate: Simulate


class Release(NamedTuple):
    """What U clients send, and what they drew for it.

    update: per parameter (U, *shape). randomness: name -> (U, ...); handed over where the threat model says so.
    """

    update: Update
    randomness: dict[str, Tensor]


class Defense(nn.Module, ABC):
    """How a client changes what it sends: one conditional density, in two directions.

    Its random numbers come from the seeds of the updates alone.
    """

    @abstractmethod
    def sample(self, private: Private) -> Release:
        """Draw what U clients send, for the client."""

    @abstractmethod
    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """Return how likely the observed updates are, for the attacker: as exact as what is known of them allows.

        Args:
            observation: with the realized randomness where the threat model grants it.
            distance: what stands for a Dirac, for defenses or parts of the update that are free of noise.
        """

    def check(self, victim: Victim, update: str) -> None:
        """Raise ConfigurationError, before anything is computed, where victim or client lack what the defense needs.

        Args:
            victim: the model.
            update: "gradient" or "fedavg", as in the threat model.
        """

    def target(self, private: Private) -> Tensor:
        """Return the images (U, B, C, H, W) that reconstructions are scored against; as a rule the private ones."""
        return private.images

    def settings(self) -> dict[str, Any]:
        """Its constructor's arguments: equal settings of one class mean the same density."""
        return {name: value for name, value in vars(self).items() if name[0] != "_" and name != "training"}

    def __str__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"
