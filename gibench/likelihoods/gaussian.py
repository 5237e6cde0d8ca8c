"""Gaussian likelihood: the squared distance of DLG (Zhu, Liu, Han, NeurIPS 2019)."""

from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Likelihood
from gibench.likelihoods.products import Products, add_up, inner
from gibench.types import Update


class Gaussian(Likelihood):
    """-log N(g; g(x), sigma^2 I) = sum over all parameters of (g(x) - g)^2 / (2 sigma^2), up to a constant.

    From inner products it is |g(x)|^2 - 2 <g(x), g> + |g|^2, which loses all digits where g(x) is close to g; the
    engine chooses that way by itself in float64 only.

    Args:
        sigma: standard deviation of each coordinate. The default makes it the plain sum of squares that DLG, iDLG and
            IG's l2 baseline minimize; the tolerances of their L-BFGS are absolute, so that the scale matters.
    """

    reads = "products"
    cancels = True

    def __init__(self, *, sigma: float = 0.5**0.5) -> None:
        super().__init__()
        if not sigma > 0:
            raise ConfigurationError(f"sigma is {sigma}; a standard deviation is positive.")
        self.sigma = sigma

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        differences = {name: simulated[name] - observed[name] for name in observed}
        return add_up({name: inner(value, value) for name, value in differences.items()}) / (2 * self.sigma**2)

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`: (g(x) - g) / sigma, exactly."""
        return {name: (simulated[name] - observed[name]) / self.sigma for name in observed}

    def of_products(self, products: Products) -> Tensor:
        """See `Likelihood`."""
        squared = add_up(products.simulated) - 2 * add_up(products.cross) + add_up(products.observed)
        return squared / (2 * self.sigma**2)
