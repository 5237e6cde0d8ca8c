"""Gaussian likelihood: the squared distance of DLG (Zhu, Liu, Han, NeurIPS 2019)."""

from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Likelihood
from gibench.types import Update


class Gaussian(Likelihood):
    """-log N(g; g(x), sigma^2 I) = sum over all parameters of (g(x) - g)^2 / (2 sigma^2), up to a constant.

    Args:
        sigma: standard deviation of each coordinate. The default makes it the plain sum of squares that DLG, iDLG and
            IG's l2 baseline minimize; the tolerances of their L-BFGS are absolute, so that the scale matters.
    """

    def __init__(self, *, sigma: float = 0.5**0.5) -> None:
        super().__init__()
        if sigma <= 0:
            raise ConfigurationError(f"sigma is {sigma}; a standard deviation is positive.")
        self.sigma = sigma

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        squares = [(simulated[name] - observed[name]).square().flatten(1).sum(1) for name in observed]
        return sum(squares[1:], start=squares[0]) / (2 * self.sigma**2)
