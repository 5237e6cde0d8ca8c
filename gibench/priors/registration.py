"""Registration: move one image onto another that shows the same (with scikit-image)."""

from typing import Literal

import numpy as np
import torch
from scipy.ndimage import shift
from skimage.registration import optical_flow_ilk, phase_cross_correlation
from skimage.transform import warp
from torch import Tensor

Registration = Literal["none", "translation", "flow"]
FINENESS = 20  # a translation is found to 1 / 20 of a pixel
ROUNDS = 3  # the first, whose windows show different parts, errs by 0.1 pixels on CIFAR-10, the third by 0.03
FARTHEST = 0.25  # of a side; what seems to be moved farther is not the same picture, and stays


def register(images: Tensor, references: Tensor, kind: Registration) -> Tensor:
    """Move each image onto its reference.

    translation: the peak of the cross-correlation of the gray images under a Hann window, three times, to 1/20 of a
        pixel, where it is within a quarter of a side (Guizar-Sicairos et al. 2008); moved bilinearly, the border
        repeated.
    flow: iterative Lucas-Kanade optical flow of the gray images (Le Besnerais and Champagnat 2005), with scikit-image's
        settings; moved bilinearly, the border repeated.

    Args:
        images: (B, C, H, W) in pixels.
        references: (B, C, H, W).
        kind: "none" returns them as they are.
    """
    if kind == "none":
        return images
    move = _translate if kind == "translation" else _flow
    pairs = zip(images.double().cpu().numpy(), references.double().cpu().numpy(), strict=True)
    return torch.as_tensor(np.stack([move(image, reference) for image, reference in pairs])).to(images)


def _translate(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    height, width = reference.shape[1:]
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1])  # the border is no part of the picture
    moved, total = image, np.zeros(2)
    for _ in range(ROUNDS):
        centered = [(gray - gray.mean()) * window for gray in (reference.mean(0), moved.mean(0))]
        if not all(gray.any() for gray in centered):
            return image
        # By phases alone, noise of high frequencies would weigh as much as the picture.
        distance, *_ = phase_cross_correlation(*centered, upsample_factor=FINENESS, normalization=None)  # type: ignore[no-untyped-call]
        total = total + distance
        if (np.abs(total) > FARTHEST * np.array([height, width])).any():
            return image
        moved = np.asarray(shift(image, (0, *total), order=1, mode="nearest"))
    return moved


def _flow(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    flow = optical_flow_ilk(reference.mean(0), image.mean(0), dtype=np.float64)  # type: ignore[no-untyped-call]
    rows, columns = np.indices(reference.shape[1:], dtype=np.float64)
    places = np.stack([rows + flow[0], columns + flow[1]])
    moved = [warp(channel, places, order=1, mode="edge", preserve_range=True) for channel in image]  # type: ignore[no-untyped-call]
    return np.stack(moved)
