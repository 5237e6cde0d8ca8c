"""Shifts of images with PIL, scipy and numpy; images (H, W, 3), floating point in [0, 1]."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.fft import dct

Array = NDArray[Any]


def luma(image: Array) -> Array:
    return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]


def gray(image: Array) -> Array:
    return np.stack([luma(image)] * 3, axis=-1)


def negative(image: Array) -> Array:
    return 1 - image


def blur(image: Array) -> Array:
    planes = [ndimage.gaussian_filter(plane, 1.0, mode="mirror", truncate=3.0) for plane in np.moveaxis(image, -1, 0)]
    return np.stack(planes, axis=-1)


def rotated(image: Array) -> Array:
    return np.rot90(image)


def posterized(image: Array) -> Array:
    return np.minimum(np.floor(4 * image), 3) / 3


def edges(image: Array) -> Array:
    slopes = [ndimage.sobel(luma(image), axis, mode="nearest") / 4 for axis in (0, 1)]
    return np.stack([np.clip(1 - np.hypot(*slopes), 0, 1)] * 3, axis=-1)


def resized(image: Array, size: int) -> Array:
    """Pillow's antialiased bilinear resizing of bytes."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def spectrum(images: Array) -> Array:
    """The orthonormal DCT-II along the two axes of (N, H, W, C), one axis at a time."""
    return dct(dct(images, axis=1, norm="ortho"), axis=2, norm="ortho")
