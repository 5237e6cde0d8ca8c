"""The likelihood: how well a simulated update explains the observed one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gibench.errors import BackendError, ConfigurationError
from gibench.likelihoods.products import Products
from gibench.needs import Needs
from gibench.types import Observation, Update


class Likelihood(nn.Module, ABC):
    """-log p(g | x), up to a constant, for U updates at once.

    It declares what it reads of the simulated update, so that the engine need not compute more.
    """

    needs = Needs()

    reads: Literal["update", "products", "nothing"] = "update"
    """"products" where inner products with the observed update and with itself suffice; then `of_products` is there."""

    cancels: bool = False
    """Whether `of_products` subtracts large numbers near the optimum, so that it needs float64 to be as good."""

    @abstractmethod
    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """Compare two updates with the same names and shapes (U, *shape); return (U,), lower is better."""

    def of_products(self, products: Products) -> Tensor:
        """The same, from inner products alone."""
        raise BackendError(f"{type(self).__name__} reads more than inner products; set the engine's backend to 'auto'.")

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """Return rows r whose squares a least-squares search adds up, name -> (U, *any shape).

        With the weights that they hold constant, half their squared sum has the derivative of `forward`: J^T r is it, J
        the Jacobian of r. Where `forward` is itself half a sum of squares, it is that sum; elsewhere r is that of one
        step of iterative reweighting, its weights detached. What says nothing is zero or absent.

        Raises:
            ConfigurationError: when the likelihood has no such form.
        """
        raise ConfigurationError(f"{type(self).__name__} has no least-squares form; search it by Adam or L-BFGS.")

    def compared(self, observed: Update) -> Update:
        """Return which coordinates of the update it looks at, name -> bool (U, *shape); absent are those it ignores."""
        return {name: torch.ones_like(value, dtype=torch.bool) for name, value in observed.items()}

    def informative(self, observed: Update) -> Tensor:
        """Return how many coordinates of each update it compares: (U,), int64."""
        first = next(iter(observed.values()))
        counts = [mask.flatten(1).sum(1) for mask in self.compared(observed).values()]
        return sum(counts, start=torch.zeros(len(first), dtype=torch.int64, device=first.device))

    def hypothesis(self, observation: Observation) -> "Hypothesis":
        """Return what is compared with what, once the observation is there; a plain distance compares all of it."""
        return Hypothesis(self, observation)

    def as_distance(self, observation: Observation) -> "Likelihood":
        """Return itself, checked against the observation, as a part of another likelihood.

        Raises:
            ConfigurationError: when it does not fit the observation, or simulates something of its own.
        """
        found = self.hypothesis(observation)
        if found.likelihood is not self or found.observation is not observation:
            raise ConfigurationError(f"{type(self).__name__} is no plain distance; use it as the likelihood itself.")
        return self


class Hidden(NamedTuple):
    """A random number inside the simulated update that the attacker does not know: N(0, 1) of shape (B, *shape).

    An attack draws it anew for each evaluation, or searches it together with the images (see `GradientMatching`).
    """

    name: str
    shape: tuple[int, ...]


class Hypothesis(NamedTuple):
    """What an attack takes for the law of the updates.

    likelihood: -log p(g | x), reading the update of the observation and what it simulates.
    observation: with the part of the update that says something, and with a `simulate` that includes what a defense
        does to every update alike, such as clipping.
    known: arguments of `simulate` by name, (U, ...), besides images and labels.
    hidden: a further argument of `simulate` that is not known; None where all are.
    """

    likelihood: Likelihood
    observation: Observation
    known: Mapping[str, Tensor] = {}
    hidden: Hidden | None = None
