"""Synthetic images with the spectrum of real ones and no content: the second half of LTI's auxiliary data."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

from gibench.seeding import generator

_AT_ONCE = 4096


def spectral_twins(images: NDArray[Any], names: tuple[str, ...]) -> NDArray[Any]:
    """Return as many synthetic images as there are real ones (N, H, W, C), of the same type.

    For each channel, each coefficient of the orthonormal two-dimensional DCT-II of the real images has a mean and a
    standard deviation; synthetic coefficients are drawn from independent Gaussians with these, one image for each name.

    "Learning to Invert" (Wu et al., UAI 2023) adds such images to its out-of-distribution auxiliary data. Its code
    casts them to bytes so that what lies outside the range wraps around; we clamp.
    """
    real = np.float64(255 if images.dtype == np.uint8 else 1)
    sums, squares = np.zeros(images.shape[1:]), np.zeros(images.shape[1:])
    for start in range(0, len(images), _AT_ONCE):
        coefficients = dctn(images[start : start + _AT_ONCE] / real, axes=(1, 2), norm="ortho")
        sums += coefficients.sum(0)
        squares += np.square(coefficients).sum(0)
    mean = sums / len(images)
    deviation = np.sqrt(np.maximum(squares / len(images) - np.square(mean), 0))
    twins = np.empty_like(images)
    for start in range(0, len(images), _AT_ONCE):
        chunk = names[start : start + _AT_ONCE]
        drawn = torch.stack([torch.randn(images.shape[1:], generator=generator("dct", name)) for name in chunk])
        pixels = idctn(mean + deviation * drawn.double().numpy(), axes=(1, 2), norm="ortho").clip(0, 1)
        twins[start : start + _AT_ONCE] = np.rint(pixels * 255) if images.dtype == np.uint8 else pixels
    return twins
