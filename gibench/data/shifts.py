"""Shifts of a data set: the same images and classes, drawn otherwise. None draws random numbers."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from gibench.errors import ConfigurationError

ShiftName = Literal["gray", "negative", "blur", "rotated", "posterized", "edges"]
"""gray: without color, luma in all channels. negative: 1 - x. blur: Gaussian, standard deviation of 1 pixel.
rotated: by 90 degrees, counterclockwise. posterized: four levels per channel. edges: dark lines on white."""

SHIFTS: tuple[ShiftName, ...] = get_args(ShiftName)
LEVELS = 4


def shifted(images: Tensor, shift: ShiftName) -> Tensor:
    """Return images (N, C, H, W) in [0, 1] after a shift, of the same shape and range.

    The shifts of style in "GIFD" (Fang et al., ICCV 2023) are art paintings, photos, cartoons and sketches of other
    data sets. These ones keep the images, so that the same images can be compared with and without: posterized stands
    in for cartoons and edges for sketches; blur follows "Benchmarking Neural Network Robustness to Common Corruptions
    and Perturbations" (Hendrycks and Dietterich, ICLR 2019), whose corruptions come in five strengths; ours in one.

    Raises:
        ConfigurationError: gray asked of gray images, or rotated of images that are not square.
    """
    if shift == "gray":
        if images.shape[1] == 1:
            raise ConfigurationError("shift is 'gray' but the images are gray; choose another one.")
        return _luma(images).expand_as(images).clone()
    if shift == "negative":
        return 1 - images
    if shift == "blur":
        return _blurred(images)
    if shift == "rotated":
        if images.shape[2] != images.shape[3]:
            raise ConfigurationError("shift is 'rotated' but the images are not square; choose another one.")
        return images.rot90(1, (2, 3)).contiguous()
    if shift == "posterized":
        return (images * LEVELS).floor().clamp(max=LEVELS - 1) / (LEVELS - 1)
    return _edges(images)


def _luma(images: Tensor) -> Tensor:
    """Rec. 601 luma, (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    return (images * images.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).clamp(0, 1)


def _blurred(images: Tensor) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur  # heavy, and needed here only

    blurred: Tensor = gaussian_blur(images, kernel_size=[7, 7], sigma=[1.0, 1.0])
    return blurred.clamp(0, 1)


def _edges(images: Tensor) -> Tensor:
    """1 - |Sobel gradient of the luma|, in all channels; a step from black to white across one pixel is black."""
    across = images.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    padded = F.pad(_luma(images), (1, 1, 1, 1), mode="replicate")
    slopes = F.conv2d(padded, torch.stack([across, across.T])[:, None])
    drawn: Tensor = 1 - torch.linalg.vector_norm(slopes, dim=1, keepdim=True)
    return drawn.clamp(0, 1).expand_as(images).clone()
