"""The likelihood: how well a simulated update explains the observed one."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from gibench.errors import BackendError
from gibench.likelihoods.products import Products
from gibench.types import Update


class Likelihood(nn.Module, ABC):
    """-log p(g | x), up to a constant, for U updates at once.

    It declares what it reads of the simulated update, so that the engine need not compute more.
    """

    reads: ClassVar[Literal["update", "products", "nothing"]] = "update"
    """"products" where inner products with the observed update and with itself suffice; then `of_products` is there."""

    cancels: ClassVar[bool] = False
    """Whether `of_products` subtracts large numbers near the optimum, so that it needs float64 to be as good."""

    @abstractmethod
    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """Compare two updates with the same names and shapes (U, *shape); return (U,), lower is better."""

    def of_products(self, products: Products) -> Tensor:
        """The same, from inner products alone."""
        raise BackendError(f"{type(self).__name__} reads more than inner products; set the engine's backend to 'auto'.")
