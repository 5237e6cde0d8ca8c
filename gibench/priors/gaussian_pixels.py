"""Independent Gaussian pixels: the prior of the Bayesian Cramér-Rao bound (van Trees, 1968)."""

import math

from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.priors.base import Prior
from gibench.types import Observation


class GaussianPixels(Prior):
    r"""-log N(x; mean, std^2 I) over all pixels of the batch, up to a constant.

    .. math:: R(x) = \frac{w}{2 \, \mathrm{std}^2} \sum_j (x_j - \mathrm{mean})^2

    A sum, not a mean: with `Gaussian(sigma=...)` at the noise's own sigma, and w = 1, likelihood and prior together are
    the negative logarithm of the posterior density. Its least point, the posterior mode, is what to hold against
    `gibench.diagnostics.bayesian_psnr_bound`, which bounds the mean squared error of any estimate under this very
    prior: the default std^2 = 1/12, the variance of a pixel that is uniform on [0, 1], is the bound's. Where the update
    is linear in the images, the mode is the posterior mean and attains it; directions that leave no trace are answered
    by the mean. Real images are no independent pixels, so that other priors do better on them.

    Args:
        mean: of each pixel.
        std: standard deviation of each pixel.
        weight: w, at least 0; 1 is Bayes' rule.
    """

    def __init__(self, *, mean: float = 0.5, std: float = 12**-0.5, weight: float = 1.0) -> None:
        super().__init__()
        if not 0 < std < math.inf or not math.isfinite(mean):
            raise ConfigurationError(f"mean is {mean} and std {std}; the first is finite, the second positive.")
        if not weight >= 0:
            raise ConfigurationError(f"the weight of the Gaussian pixels is {weight}; it must be at least 0.")
        self.mean = mean
        self.std = std
        self.weight = weight

    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`."""
        scaled = (images - self.mean) / self.std
        return self.weight / 2 * scaled.flatten(1).square().sum(1)

    def residuals(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`: sqrt(w) (x - mean) / std, exactly."""
        return math.sqrt(self.weight) / self.std * (images - self.mean).flatten(1)
