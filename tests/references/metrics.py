"""Slow and obvious twins of the metrics, written from their definitions."""

from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

Array = NDArray[np.float64]


def psnr(first: Array, second: Array) -> float:
    """Two images of one shape in [0, 1] -> dB."""
    error = np.mean((first - second) ** 2)
    return 100.0 if error == 0 else min(100.0, float(10 * np.log10(1 / error)))


def ssim(first: Array, second: Array, border: int = 0) -> float:
    """Two images (C, H, W) in [0, 1]; formula (13) of Wang et al. 2004, an 11-px Gaussian window, mirrored borders.

    `border` pixels on each side do not count.
    """
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(channel: Array) -> Array:
        rows = correlate1d(channel, window, axis=0, mode="mirror")
        return np.asarray(correlate1d(rows, window, axis=1, mode="mirror"))

    maps = []
    for x, y in zip(first, second, strict=True):
        mean_x, mean_y = blur(x), blur(y)
        variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
        covariance = blur(x * y) - mean_x * mean_y
        luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        structure = (2 * covariance + 0.03**2) / (variance_x + variance_y + 0.03**2)
        height, width = x.shape
        maps.append((luminance * structure)[border : height - border, border : width - border])
    return float(np.mean(maps))


def best_assignment_cost(found: Array, truth: Array) -> float:
    """Smallest summed squared distance over all orders of `found`; both (B, ...)."""
    orders = permutations(range(len(found)))
    return min(sum(float(np.sum((found[j] - truth[b]) ** 2)) for b, j in enumerate(order)) for order in orders)


def nearest(images: Array, prior: Array) -> Array:
    """For each of (M, C, H, W) the closest of (N, C, H, W)."""
    return np.stack([prior[np.argmin([np.sum((image - other) ** 2) for other in prior])] for image in images])


def risk(distances: list[float], delta: float) -> float:
    """Share of distances above delta."""
    return sum(distance > delta for distance in distances) / len(distances)


def exact_bootstrap(values: list[float], clusters: list[str]) -> Array:
    """The means of ALL resamples of whole clusters: G to the power of G of them, each equally likely."""
    groups = [
        [value for value, name in zip(values, clusters, strict=True) if name == own] for own in sorted(set(clusters))
    ]
    drawn = product(groups, repeat=len(groups))
    return np.array([np.mean([value for group in resample for value in group]) for resample in drawn])


def bad_pixels(image: Array, truth: Array, bad: float) -> float:
    """Share of the pixels of two (C, H, W) of which some channel is off by more than `bad`."""
    channels, height, width = image.shape
    wrong = sum(
        any(abs(image[c, i, j] - truth[c, i, j]) > bad for c in range(channels))
        for i, j in product(range(height), range(width))
    )
    return wrong / (height * width)


def total_variation(image: Array) -> float:
    """Mean absolute difference to the right-hand neighbor, plus that to the lower one, of (C, H, W)."""
    channels, height, width = image.shape
    right = [
        abs(image[c, i, j + 1] - image[c, i, j])
        for c, i, j in product(range(channels), range(height), range(width - 1))
    ]
    down = [
        abs(image[c, i + 1, j] - image[c, i, j])
        for c, i, j in product(range(channels), range(height - 1), range(width))
    ]
    return float(np.mean(right) + np.mean(down))


def identified(image: Array, truth: Array, strangers: Array) -> bool:
    """Whether an image is at least as close to the truth as to each of the strangers."""
    own = np.sum((image - truth) ** 2)
    return all(bool(own <= np.sum((image - stranger) ** 2)) for stranger in strangers)
