"""The adversarial-risk curve (rule R18): how many images stay further than delta from their reconstruction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gibench.errors import ShapeError


@dataclass(frozen=True)
class RiskCurve:
    """R(delta): `deltas` (D,), rising Euclidean distances of images in [0, 1]; `risk` (D,), shares in [0, 1]."""

    deltas: NDArray[np.float64]
    risk: NDArray[np.float64]


def default_deltas(image_size: int) -> NDArray[np.float64]:
    r"""The 61 distances :math:`\sqrt{N}\, 10^{-p/20}` for p = 60, 59, ..., 0 dB.

    R there is the share of images below p dB; the last one, sqrt(N), is the largest distance of two images in [0, 1].
    """
    return np.asarray(np.sqrt(image_size) * 10 ** (-np.arange(60, -1, -1) / 20), dtype=np.float64)


def risk_curve(
    mse: ArrayLike, *, image_size: int, failed: ArrayLike | None = None, deltas: Sequence[float] | None = None
) -> RiskCurve:
    r"""Share of images that an attack misses by more than delta; low is a strong attack.

    .. math:: R(\delta) = \frac{1}{n} \sum_i [\, \lVert x_i - \hat x_i \rVert_2 > \delta \,],
        \qquad \lVert x - \hat x \rVert_2 = \sqrt{N \cdot MSE}, \quad N = C H W

    This is the quantity that the Bayes-optimal adversary minimizes (Balunovic et al., "Bayesian framework for gradient
    leakage", ICLR 2022).

    Args:
        mse: (n,), per image.
        image_size: N.
        failed: (n,), true where the attack failed; such an image, or one of MSE NaN, is missed at each delta.
        deltas: rising; `default_deltas(image_size)` where None.

    Raises:
        ShapeError: without images, or when `failed` does not match `mse`.
    """
    errors = np.asarray(mse, dtype=np.float64)
    missed = np.zeros(errors.shape, dtype=bool) if failed is None else np.asarray(failed, dtype=bool)
    if errors.ndim != 1 or errors.size == 0 or missed.shape != errors.shape:
        raise ShapeError(
            f"mse has shape {errors.shape} and failed {missed.shape}; pass two of shape (n,), n at least 1."
        )
    distances = np.where(missed | ~np.isfinite(errors), np.inf, np.sqrt(image_size * errors))
    grid = default_deltas(image_size) if deltas is None else np.asarray(deltas, dtype=np.float64)
    return RiskCurve(deltas=grid, risk=(distances[None] > grid[:, None]).mean(1))
