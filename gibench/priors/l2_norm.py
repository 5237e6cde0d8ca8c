"""The norm of the images (DeepInversion, Yin et al., CVPR 2020; for updates GradInversion, CVPR 2021)."""

from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.priors.base import Prior, standardized
from gibench.types import Observation

FLOOR = 1e-3  # root mean square of an image, in the victim's units, below which its norm counts as a parabola in rows


class L2Norm(Prior):
    r"""Images near the victim's mean color.

    .. math:: R(x) = \frac{w}{B} \sum_b \lVert (x_b - m) / s \rVert_2

    with the victim's mean m and deviation s per channel, un-squared for each image and averaged over the batch, which
    is what DeepInversion's code computes. GIAS divides the norm of the whole batch by the pixels of one channel;
    breaching takes half the mean square of all numbers, of which a weight of 1e-6 is hardly anything.

    Args:
        weight: w, at least 0, relative to the likelihood's scale.
    """

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        if not weight >= 0:
            raise ConfigurationError(f"the weight of the norm is {weight}; it must be at least 0.")
        self.weight = weight

    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`."""
        norms: Tensor = standardized(images, observation).flatten(2).norm(dim=2)
        return self.weight * norms.mean(1)

    def residuals(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`: each image over the square root of its norm (IRLS), taken for at least 1e-3 sqrt(C H W)."""
        flat = standardized(images, observation).flatten(2)
        norms = flat.detach().norm(dim=2, keepdim=True).clamp_min(FLOOR * flat.shape[2] ** 0.5)
        rows: Tensor = (self.weight / flat.shape[1] / norms).sqrt() * flat
        return rows.flatten(1)
