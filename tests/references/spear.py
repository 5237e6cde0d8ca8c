"""SPEAR's steps the slow way: null vectors by SVD, the certificate neuron by neuron, images from the true patterns."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def null_vector(rows: Array) -> Array:
    """The unit vector (B,) orthogonal to `rows` (B - 1, B), by a full SVD; its sign is free."""
    vector: Array = np.linalg.svd(rows, full_matrices=True)[2][-1]
    return vector


def agreement(inputs: Array, deltas: Array, weight: Array, bias: Array) -> float:
    """Inputs (B, n), deltas (m, B): the smallest share, over inputs, of neurons whose sign fits the delta's zero."""
    shares = []
    for image, row in enumerate(inputs):
        fits = 0
        for neuron in range(len(weight)):
            positive = sum(w * x for w, x in zip(weight[neuron], row, strict=True)) + bias[neuron] > 0
            fits += positive == (deltas[neuron, image] != 0)
        shares.append(fits / len(weight))
    return min(shares)


def with_patterns(weight_gradient: Array, bias_gradient: Array, active: NDArray[np.bool_]) -> Array:
    """The inputs (B, n), told which neurons (m, B) are on for which image: no sampling, no bias column.

    The weight gradient alone is factored; the scales come from least squares of db = sum_b delta_b.
    """
    size = active.shape[1]
    left, values, right = np.linalg.svd(weight_gradient, full_matrices=False)
    left, right = left[:, :size] * values[:size], right[:size]
    columns = []
    for image in range(size):
        rows = left[~active[:, image]]
        columns.append(np.linalg.svd(rows, full_matrices=False)[2][-1])
    matrix = np.stack(columns, axis=1)
    scales = np.linalg.lstsq(left @ matrix, bias_gradient, rcond=None)[0]
    inputs: Array = np.linalg.solve(matrix * scales, right)
    return inputs
