"""Cosine likelihood: only the direction of the update counts (Geiping et al., NeurIPS 2020)."""

from collections.abc import Iterable

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Likelihood
from gibench.likelihoods.products import Products, add_up, inner, products
from gibench.types import Update


class Cosine(Likelihood):
    """kappa (1 - <g(x), g> / (|g(x)| |g|)), over all parameters together: a von Mises-Fisher model of the direction.

    Args:
        kappa: concentration; only its ratio to the weights of the priors matters.

    An update of length zero has no direction; it counts as orthogonal to everything.
    """

    reads = "products"

    def __init__(self, *, kappa: float = 1.0) -> None:
        super().__init__()
        if not kappa > 0:
            raise ConfigurationError(f"kappa is {kappa}; a concentration is positive.")
        self.kappa = kappa

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        return self.of_products(products(simulated, observed))

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`: sqrt(kappa) (g(x) / |g(x)| - g / |g|), since kappa (1 - cos) is half its square.

        It keeps the digits that 1 - cos loses near the optimum. Of an update of length zero the direction is taken for
        the vector 0, so that half the square is kappa / 2 there and not kappa.
        """
        mine, theirs = _direction(simulated, observed), _direction(observed, observed)
        return {name: self.kappa**0.5 * (mine[name] - theirs[name]) for name in observed}

    def of_products(self, products: Products) -> Tensor:
        """See `Likelihood`."""
        lengths = _length(products.simulated) * _length(products.observed)
        return self.kappa * (1 - add_up(products.cross) / lengths)


def _direction(update: Update, names: Iterable[str]) -> Update:
    length = _length({name: inner(update[name], update[name]) for name in names})
    return {name: update[name] / length.reshape(-1, *[1] * (update[name].ndim - 1)) for name in names}


def _length(squares: dict[str, Tensor]) -> Tensor:
    squared = add_up(squares)
    return squared.clamp_min(torch.finfo(squared.dtype).tiny).sqrt()
