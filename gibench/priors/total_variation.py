"""Total variation: neighboring pixels are alike (Rudin, Osher, Fatemi 1992; for updates Geiping et al. 2020)."""

import math
from typing import Literal

import torch
from torch import Tensor

from gibench.errors import ConfigurationError, RefusalError
from gibench.priors.base import Prior
from gibench.types import Observation

Kind = Literal["anisotropic", "isotropic", "squared"]
EPSILON = 1e-8  # under the root of the isotropic kind, whose derivative is so finite where both differences are 0


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
        smoothing: s, in pixels: a difference, or the length of an isotropic gradient, d counts as sqrt(d^2 + s^2) - s,
            which has a derivative at 0. 0 is as published; a least-squares search of the anisotropic kind needs more.

    Raises:
        ConfigurationError: for a smoothed square, which is smooth already.
        RefusalError: for `opponents` on images that have not three channels.
    """

    def __init__(
        self, *, weight: float, kind: Kind = "anisotropic", opponents: bool = False, smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise ConfigurationError(f"the weight of the total variation is {weight}; it must be at least 0.")
        if not 0 <= smoothing < math.inf:
            raise ConfigurationError(f"the smoothing of the total variation is {smoothing}; it must be at least 0.")
        if smoothing and kind == "squared":
            raise ConfigurationError("the squared total variation is smooth as it is; leave the smoothing out.")
        self.weight = weight
        self.kind = kind
        self.opponents = opponents
        self.smoothing = smoothing

    def check(self, observation: Observation) -> None:
        """See `Prior`."""
        if self.opponents and observation.image_shape[0] != 3:
            raise RefusalError(f"opponent colors need 3 channels, the images have {observation.image_shape[0]}.")

    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`."""
        images = with_opponents(images) if self.opponents else images
        return self.weight * total_variation(images, kind=self.kind, smoothing=self.smoothing)

    def residuals(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`: sqrt(w) d with w = 1 / sqrt(d^2 + s^2), whose parabola lies above (IRLS); squares exactly.

        Raises:
            ConfigurationError: for the anisotropic kind without smoothing.
        """
        if self.kind == "anisotropic" and self.smoothing == 0:
            raise ConfigurationError("Levenberg-Marquardt needs a smoothed total variation; set smoothing, e.g. 1e-3.")
        images = with_opponents(images) if self.opponents else images
        return math.sqrt(self.weight) * variation_rows(images, kind=self.kind, smoothing=self.smoothing)


def with_opponents(images: Tensor) -> Tensor:
    """Append R - G, R - B and G - B to images (U, B, 3, H, W)."""
    red, green, blue = images.unbind(2)
    return torch.cat([images, torch.stack([red - green, red - blue, green - blue], 2)], 2)


def total_variation(images: Tensor, *, kind: Kind = "anisotropic", smoothing: float = 0.0) -> Tensor:
    """TV of images (U, B, C, H, W), as defined in `TotalVariation`: (U,)."""
    right, down = _differences(images, kind)
    if kind == "squared":
        return (right.square() + down.square()).flatten(2).sum(2).mean(1)
    if kind == "anisotropic":
        return _softened(right, smoothing).flatten(1).mean(1) + _softened(down, smoothing).flatten(1).mean(1)
    softening = EPSILON + smoothing**2
    return (torch.sqrt(right.square() + down.square() + softening) - smoothing).flatten(1).mean(1)


def variation_rows(images: Tensor, *, kind: Kind, smoothing: float) -> Tensor:
    """Rows (U, M) for which half the squared sum has the slope of `total_variation`, the weights of IRLS detached."""
    right, down = _differences(images, kind)
    if kind == "squared":
        rows = [(2 / images.shape[1]) ** 0.5 * each for each in (right, down)]
    elif kind == "anisotropic":
        rows = [
            (each.detach().square() + smoothing**2).pow(-0.25) * each / each[0].numel() ** 0.5 for each in (right, down)
        ]
    else:
        lengths = right.detach().square() + down.detach().square() + (EPSILON + smoothing**2)
        rows = [lengths.pow(-0.25) * each / each[0].numel() ** 0.5 for each in (right, down)]
    return torch.cat([each.flatten(1) for each in rows], 1)


def _differences(images: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Across and down: circular for "squared", where there are both for "isotropic"."""
    if kind == "squared":
        return images - images.roll(1, -1), images - images.roll(1, -2)
    right = images[..., :, 1:] - images[..., :, :-1]
    down = images[..., 1:, :] - images[..., :-1, :]
    return (right, down) if kind == "anisotropic" else (right[..., :-1, :], down[..., :, :-1])


def _softened(differences: Tensor, smoothing: float) -> Tensor:
    if smoothing == 0:
        return differences.abs()
    return (differences.square() + smoothing**2).sqrt() - smoothing
