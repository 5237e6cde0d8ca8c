"""Laplace noise on the update."""

from gibench.defenses.base import Defense, Private, Release
from gibench.defenses.random_numbers import laplace_like
from gibench.errors import ConfigurationError
from gibench.likelihoods import Hypothesis, Laplace, Likelihood
from gibench.types import Observation


class LaplaceNoise(Defense):
    """g = g(x) + e with independent e ~ Laplace(0, b), once on the update of the whole batch.

    Args:
        scale: b, in the units of the update; the standard deviation is b sqrt(2). 0 sends the update as it is.
    """

    def __init__(self, *, scale: float) -> None:
        super().__init__()
        if not scale >= 0:
            raise ConfigurationError(f"scale is {scale}; a Laplace scale is at least 0.")
        self.scale = scale

    def sample(self, private: Private) -> Release:
        """See `Defense`."""
        update = private.simulate(private.images, private.labels)
        noise = laplace_like(update, private.seeds)
        return Release({name: value + self.scale * noise[name] for name, value in update.items()}, {})

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`."""
        return Hypothesis(Laplace(scale=self.scale) if self.scale else distance, observation)
