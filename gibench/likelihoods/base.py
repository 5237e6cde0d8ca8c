"""The likelihood: how well a simulated update explains the observed one."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from gibench.types import Update


class Likelihood(nn.Module, ABC):
    """-log p(g | x), up to a constant, for U updates at once."""

    uses_update = True
    """Whether `forward` reads the simulated update; where it does not, none is computed."""

    @abstractmethod
    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """Compare two updates with the same names and shapes (U, *shape); return (U,), lower is better."""


def inner(left: Update, right: Update) -> Tensor:
    """Inner products <left_u, right_u> over all parameters, (U,)."""
    products = [(left[name] * right[name]).flatten(1).sum(1) for name in right]
    return sum(products[1:], start=products[0])
