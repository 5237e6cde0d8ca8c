"""Projection onto the l1-ball by bisection of its threshold."""

import numpy as np
from numpy.typing import NDArray


def project(point: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """The nearest point of l1 length at most `radius`."""
    if np.abs(point).sum() <= radius:
        return point
    low, high = 0.0, float(np.abs(point).max())
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(np.abs(point) - middle, 0).sum() > radius:
            low = middle
        else:
            high = middle
    shrunk: NDArray[np.float64] = np.sign(point) * np.maximum(np.abs(point) - high, 0)
    return shrunk
