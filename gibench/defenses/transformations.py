"""The 50 operations of which ATS makes its policies, on float images; those that can be differentiated are."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

Kind = Literal[
    "autocontrast",
    "brightness",
    "color",
    "contrast",
    "equalize",
    "invert",
    "posterize",
    "rotate",
    "sharpness",
    "shearX",
    "shearY",
    "solarize",
    "translateX",
    "translateY",
]


class Operation(NamedTuple):
    """One entry of the list: its kind, the level of its magnitude (0 to 9), and the probability listed with it."""

    kind: Kind
    level: int
    probability: float

    @property
    def signed(self) -> bool:
        """Whether the sign of the magnitude is drawn."""
        return self.kind in _STRONGEST and self.kind != "rotate"

    @property
    def geometric(self) -> bool:
        """Whether pixels are moved, so that some are lost and others are fill."""
        return self.kind in ("rotate", "shearX", "shearY", "translateX", "translateY")

    @property
    def magnitude(self) -> float:
        """Of shears in pixels per pixel, of translations in sides, of rotations in degrees; of enhancements |f - 1|."""
        return _STRONGEST[self.kind] * self.level / 9


_STRONGEST: dict[Kind, float] = {
    "shearX": 0.3,
    "shearY": 0.3,
    "translateX": 150 / 331,
    "translateY": 150 / 331,
    "rotate": 30.0,
    "color": 0.5,
    "contrast": 0.5,
    "sharpness": 0.5,
    "brightness": 0.5,
}
"""Magnitude of level 9; that of level 0 is nothing, and those between are equally far apart."""

OPERATIONS = (
    Operation("invert", 7, 0.1),
    Operation("contrast", 6, 0.2),
    Operation("rotate", 2, 0.7),
    Operation("translateX", 9, 0.3),
    Operation("sharpness", 1, 0.8),
    Operation("sharpness", 3, 0.9),
    Operation("shearY", 2, 0.5),
    Operation("translateY", 2, 0.7),
    Operation("autocontrast", 5, 0.5),
    Operation("equalize", 2, 0.9),
    Operation("shearY", 5, 0.2),
    Operation("posterize", 5, 0.3),
    Operation("color", 3, 0.4),
    Operation("brightness", 5, 0.6),
    Operation("sharpness", 9, 0.3),
    Operation("brightness", 9, 0.7),
    Operation("equalize", 5, 0.6),
    Operation("equalize", 1, 0.5),
    Operation("contrast", 7, 0.6),
    Operation("sharpness", 5, 0.6),
    Operation("color", 5, 0.7),
    Operation("translateX", 5, 0.5),
    Operation("equalize", 7, 0.3),
    Operation("autocontrast", 8, 0.4),
    Operation("translateY", 3, 0.4),
    Operation("sharpness", 6, 0.2),
    Operation("brightness", 6, 0.9),
    Operation("color", 8, 0.2),
    Operation("solarize", 0, 0.5),
    Operation("invert", 0, 0.0),
    Operation("equalize", 0, 0.2),
    Operation("autocontrast", 0, 0.6),
    Operation("equalize", 8, 0.2),
    Operation("equalize", 4, 0.6),
    Operation("color", 5, 0.9),
    Operation("equalize", 5, 0.6),
    Operation("autocontrast", 4, 0.8),
    Operation("solarize", 4, 0.2),
    Operation("brightness", 3, 0.1),
    Operation("color", 0, 0.7),
    Operation("solarize", 1, 0.4),
    Operation("autocontrast", 0, 0.9),
    Operation("translateY", 3, 0.9),
    Operation("translateY", 3, 0.7),
    Operation("autocontrast", 1, 0.9),
    Operation("solarize", 1, 0.8),
    Operation("equalize", 5, 0.8),
    Operation("invert", 0, 0.1),
    Operation("translateY", 3, 0.7),
    Operation("autocontrast", 1, 0.9),
)
"""The authors' numbered list (policy.py of github.com/gaow0007/ATSPrivacy, MIT)."""

_GRAY = 128 / 255


def apply(operation: Operation, images: Tensor, sign: int) -> Tensor:
    """Transform images (..., C, H, W) in [0, 1].

    As Pillow does it, but without rounding to 8 bits. Where what leaves [0, 1] is clipped, and where values are
    replaced by a table (equalize, posterize), the derivative is that without the clipping and without the table.

    Args:
        operation: what.
        images: with one or three channels.
        sign: of the magnitude, 1 or -1; 1 where the operation has no sign.
    """
    flat = images.flatten(0, -4) if images.ndim > 4 else images
    return _by_kind(operation, flat, sign).reshape(images.shape)


def _by_kind(operation: Operation, images: Tensor, sign: int) -> Tensor:
    kind = operation.kind
    if kind in _DEGENERATE:
        return enhance(kind, images, 1 + sign * operation.magnitude)
    if operation.geometric:
        return _move(operation, images, sign)
    if kind == "invert":
        return 1 - images
    if kind == "solarize":  # the threshold falls from 256 to 0
        return torch.where(images < 256 / 255 * (1 - operation.level / 9), images, 1 - images)
    if kind == "autocontrast":
        return _autocontrast(images)
    fixed = images.detach().clamp(0, 1)
    table: Tensor = V.equalize(fixed) if kind == "equalize" else V.posterize(fixed, round(8 - 4 * operation.level / 9))
    return images + (table - images).detach()


def enhance(kind: Kind, images: Tensor, factor: float) -> Tensor:
    """Move images (..., C, H, W) away from black, from their mean gray, from gray or from smooth ones.

    Args:
        kind: "brightness", "contrast", "color" or "sharpness".
        images: in [0, 1].
        factor: f in f x + (1 - f) d, clipped to [0, 1]; 0 is all the way to d, 1 leaves the images as they are.
    """
    blended: Tensor = factor * images + (1 - factor) * _DEGENERATE[kind](images)
    return blended + (blended.clamp(0, 1) - blended).detach()


def _smooth(images: Tensor) -> Tensor:
    """Pillow's filter, whose border stays as it is; own, because torchvision's cannot be differentiated."""
    flat = images.flatten(0, -3)
    change = 9 / 13 * (F.avg_pool2d(flat, 3, 1) - flat[:, 1:-1, 1:-1])
    return (flat + F.pad(change, (1, 1, 1, 1))).reshape(images.shape)


_DEGENERATE: dict[Kind, Callable[[Tensor], Tensor]] = {
    "brightness": torch.zeros_like,
    "contrast": lambda images: V.adjust_contrast(images, 0.0),
    "color": lambda images: V.adjust_saturation(images, 0.0),
    "sharpness": _smooth,
}


def _move(operation: Operation, images: Tensor, sign: int) -> Tensor:
    """Translate or shear, which fills with black, or rotate, which fills with gray, counterclockwise."""
    height, width = images.shape[-2:]
    magnitude = sign * operation.magnitude
    if operation.kind == "rotate":
        rotated: Tensor = V.rotate(images, magnitude, interpolation=InterpolationMode.NEAREST, fill=_GRAY)
        return rotated
    if operation.kind in ("translateX", "translateY"):
        across = operation.kind == "translateX"
        pixels = math.floor(0.5 + magnitude * (width if across else height))  # the nearest, as the center decides
        moved: Tensor = V.crop(images, 0 if across else pixels, pixels if across else 0, height, width)
        return moved
    return _shear(images, magnitude, across=operation.kind == "shearX")


def _shear(images: Tensor, slope: float, *, across: bool) -> Tensor:
    """Take each pixel from `slope` times its row (or column) further on, bicubic; black where that is outside.

    Pillow's kernel has the parameter -1, torch's -0.75: sharp edges differ by some percent of their height.
    """
    height, width = images.shape[-2:]
    rows, columns = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5 for size in (height, width))
    down, right = torch.meshgrid(rows, columns, indexing="ij")
    across_by, down_by = (slope * down, 0 * down) if across else (0 * right, slope * right)
    places = torch.stack([2 * (right + across_by) / width - 1, 2 * (down + down_by) / height - 1], -1)
    inside = (places >= -1).all(-1) & (places < 1).all(-1)
    flat = images.reshape(-1, *images.shape[-3:])
    grid = places.expand(len(flat), -1, -1, -1)
    sheared = F.grid_sample(flat, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
    return torch.where(inside, sheared, 0.0).reshape(images.shape)


def _autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]; own, because torchvision's cannot be differentiated."""
    low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
    varies = high > low
    return torch.where(varies, (images - low) / torch.where(varies, high - low, 1.0), images)
