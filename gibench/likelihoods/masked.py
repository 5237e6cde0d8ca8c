"""Parts of the update: distances that leave out what a defense has erased."""

from collections.abc import Sequence

from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Hypothesis, Likelihood
from gibench.likelihoods.products import Products
from gibench.types import Observation, Update


class Masked(Likelihood):
    """A distance on the support of the observed update alone: D(M * g(x), g) with M = 1[g != 0].

    What a client erased to zero says nothing of g(x). With the squared distance this is GIFD's and GGL's answer to
    pruning and Soteria, with the cosine that of GIAS.

    Args:
        distance: D, which gets both updates with zeros off the support.
        tensors: parameter names to mask, for example those that a defense touches; the others are compared whole.
            None is all.

    Raises:
        ConfigurationError: on binding, when the victim has no parameter of such a name.
    """

    def __init__(self, distance: Likelihood, *, tensors: Sequence[str] | None = None) -> None:
        super().__init__()
        self.distance = distance
        self.tensors = None if tensors is None else tuple(tensors)
        self.needs = distance.needs

    def hypothesis(self, observation: Observation) -> Hypothesis:
        """See `Likelihood`."""
        _check_names(self.tensors or (), observation)
        return Hypothesis(self, observation)

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        distance: Tensor = self.distance(self._mask(simulated, observed), observed)
        return distance

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`: those of the distance, zero off the support."""
        return self.distance.residuals(self._mask(simulated, observed), observed)

    def compared(self, observed: Update) -> Update:
        """See `Likelihood`: the support of the masked tensors."""
        return self._mask(self.distance.compared(observed), observed)

    def _mask(self, tensors: Update, observed: Update) -> Update:
        names = observed if self.tensors is None else set(self.tensors)
        return {name: value * (observed[name] != 0) if name in names else value for name, value in tensors.items()}


class Without(Likelihood):
    """A distance that does not look at some parameters, such as the one layer that Soteria prunes.

    Args:
        distance: of the other parameters.
        tensors: parameter names to leave out.

    Raises:
        ConfigurationError: on binding, when the victim has no parameter of such a name, or none is left.
    """

    def __init__(self, distance: Likelihood, *, tensors: Sequence[str]) -> None:
        super().__init__()
        self.distance = distance
        self.tensors = tuple(tensors)
        self.needs = distance.needs
        self.reads = distance.reads
        self.cancels = distance.cancels

    def hypothesis(self, observation: Observation) -> Hypothesis:
        """See `Likelihood`."""
        _check_names(self.tensors, observation)
        if set(self.tensors) == set(observation.update):
            raise ConfigurationError("the distance leaves out every parameter; leave one to compare.")
        return Hypothesis(self, observation)

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        distance: Tensor = self.distance(self._keep(simulated), self._keep(observed))
        return distance

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`: those of the other parameters."""
        return self.distance.residuals(self._keep(simulated), self._keep(observed))

    def compared(self, observed: Update) -> Update:
        """See `Likelihood`: the other parameters."""
        return self.distance.compared(self._keep(observed))

    def of_products(self, products: Products) -> Tensor:
        """See `Likelihood`."""
        return self.distance.of_products(Products(*(self._keep(part) for part in products)))

    def _keep(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in tensors.items() if name not in self.tensors}


def _check_names(tensors: Sequence[str], observation: Observation) -> None:
    if unknown := [name for name in tensors if name not in observation.update]:
        raise ConfigurationError(
            f"the victim has no parameter {unknown[0]!r}; name some of {', '.join(observation.update)}."
        )
