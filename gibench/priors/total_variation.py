"""Total variation: neighboring pixels are alike (Rudin, Osher, Fatemi 1992; for updates Geiping et al. 2020)."""

from typing import Literal

import torch
from torch import Tensor

from gibench.errors import ConfigurationError, RefusalError
from gibench.priors.base import Prior
from gibench.types import Observation

Kind = Literal["anisotropic", "isotropic", "squared"]


class TotalVariation(Prior):
    """weight * TV(x), averaged over the batch. Five inequivalent definitions circulate; these are three of them.

    anisotropic: mean |x[.., w+1] - x[.., w]| + mean |x[.., h+1, :] - x[.., h, :]|, each mean over all its differences.
        This is the definition that the weights of Inverting Gradients, GIAS and GIFD refer to.
    isotropic: mean sqrt(dx^2 + dy^2 + 1e-8) over the (H-1) x (W-1) positions that have both differences.
    squared: sum over pixels and channels of dx^2 + dy^2 with circular neighbors, averaged over the images of the batch:
        that of "Bayesian Framework for Gradient Leakage"; 10^3 times as large as the others.

    All are over pixels in [0, 1]. The published codes take differences of normalized pixels, x / std: for a
    victim that normalizes, their weight divided by std (about 0.25 on CIFAR-10) is ours.

    With `opponents` the channels R - G, R - B and G - B are appended first, so that colors change where brightness does
    (breaching's `double_opponents`; its differences meet zeros beyond the last row and column, and both directions
    together are averaged over all positions, so that its values are not ours).

    Args:
        weight: at least 0, relative to the likelihood's scale.
        kind: the definition.
        opponents: whether differences of colors count like channels.

    Raises:
        RefusalError: for `opponents` on images that have not three channels.
    """

    def __init__(self, *, weight: float, kind: Kind = "anisotropic", opponents: bool = False) -> None:
        super().__init__()
        if not weight >= 0:
            raise ConfigurationError(f"the weight of the total variation is {weight}; it must be at least 0.")
        self.weight = weight
        self.kind = kind
        self.opponents = opponents

    def check(self, observation: Observation) -> None:
        """See `Prior`."""
        if self.opponents and observation.image_shape[0] != 3:
            raise RefusalError(f"opponent colors need 3 channels, the images have {observation.image_shape[0]}.")

    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`."""
        images = with_opponents(images) if self.opponents else images
        return self.weight * total_variation(images, kind=self.kind)


def with_opponents(images: Tensor) -> Tensor:
    """Append R - G, R - B and G - B to images (U, B, 3, H, W)."""
    red, green, blue = images.unbind(2)
    return torch.cat([images, torch.stack([red - green, red - blue, green - blue], 2)], 2)


def total_variation(images: Tensor, *, kind: Kind = "anisotropic") -> Tensor:
    """TV of images (U, B, C, H, W), as defined in `TotalVariation`: (U,)."""
    if kind == "squared":
        pairs = (images - images.roll(1, dims) for dims in (-1, -2))
        squares = sum((each.square() for each in pairs), start=torch.zeros_like(images))
        return squares.flatten(2).sum(2).mean(1)
    right = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    if kind == "anisotropic":
        return right.abs().flatten(1).mean(1) + down.abs().flatten(1).mean(1)
    both = right[..., :-1, :].square() + down[..., :, :-1].square()
    return torch.sqrt(both + 1e-8).flatten(1).mean(1)
