"""Gaussian noise on the update (as in DLG, and in "Bayesian Framework for Gradient Leakage")."""

from gibench.defenses.base import Defense, Private, Release
from gibench.defenses.random_numbers import normal_like
from gibench.errors import ConfigurationError
from gibench.likelihoods import Gaussian, Hypothesis, Likelihood
from gibench.types import Observation


class GaussianNoise(Defense):
    """g = g(x) + sigma e, e ~ N(0, I), once on the update of the whole batch: p(g | x) = N(g; g(x), sigma^2 I).

    The absolute sigma means nothing across victims; sigma sqrt(parameters) / |g(x)| does. Code that adds noise to each
    sample's gradient and averages has sigma / sqrt(B).

    Args:
        sigma: standard deviation of each entry, in the units of the update; 0 sends the update as it is.
    """

    def __init__(self, *, sigma: float) -> None:
        super().__init__()
        if not sigma >= 0:
            raise ConfigurationError(f"sigma is {sigma}; a standard deviation is at least 0.")
        self.sigma = sigma

    def sample(self, private: Private) -> Release:
        """See `Defense`."""
        update = private.simulate(private.images, private.labels)
        noise = normal_like(update, private.seeds)
        return Release({name: value + self.sigma * noise[name] for name, value in update.items()}, {})

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`."""
        return Hypothesis(Gaussian(sigma=self.sigma) if self.sigma else distance, observation)
