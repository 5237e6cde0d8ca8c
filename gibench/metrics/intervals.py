"""Intervals that respect batches (rule R8): images of one update leak together, so the bootstrap draws updates.

scipy.stats.bootstrap draws single values; with correlated images its intervals are too narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gibench.errors import NonFiniteError, ShapeError

RESAMPLES = 2000
LEVEL = 0.95

_WILSON = 1.959964  # standard normal quantile at (1 + LEVEL) / 2
_DRAWN_AT_ONCE = 2**20


@dataclass(frozen=True)
class Interval:
    """A mean over `images` images of `clusters` updates, and its 95 % interval; `reason` says why there is none."""

    value: float | None
    low: float | None
    high: float | None
    images: int
    clusters: int
    reason: str | None = None


def mean_interval(values: ArrayLike, clusters: Sequence[str], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean over images with its percentile bootstrap interval; each resample draws whole clusters with replacement.

    The result does not depend on the order of the images. All values equal give an interval of width zero.

    Args:
        values: (n,), finite.
        clusters: n names, the update_id of each image.
        seed: of the resampling.
        resamples: how often.

    Raises:
        ShapeError: when `values` and `clusters` differ in length.
        NonFiniteError: for NaN or infinity; a failed image scores as the floor (rule R7).
    """
    numbers, names = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if numbers.ndim != 1 or numbers.shape != names.shape:
        raise ShapeError(f"{numbers.shape} values and {names.shape} clusters; pass one update_id per value.")
    if not np.isfinite(numbers).all():
        raise NonFiniteError("values hold NaN or infinity; a failed image scores as the mean-image floor (rule R7).")
    if numbers.size == 0:
        return Interval(None, None, None, images=0, clusters=0, reason="no images.")
    order = np.lexsort((numbers, names))  # sums of floats depend on the order
    numbers, names = numbers[order], names[order]
    lowest = numbers.min()  # taken out before and put back after, so that equal values stay equal
    _, member = np.unique(names, return_inverse=True)
    sums = np.asarray(np.bincount(member, weights=numbers - lowest), dtype=np.float64)
    counts = np.bincount(member)
    value = float(lowest + sums.sum() / counts.sum())
    if len(counts) == 1:
        return Interval(
            value, None, None, images=numbers.size, clusters=1, reason="one update only; run more for an interval."
        )
    means = lowest + _resampled_means(sums, counts, np.random.default_rng(seed), resamples)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), images=numbers.size, clusters=len(counts))


def paired_difference(
    first: Mapping[tuple[str, str], float],
    second: Mapping[tuple[str, str], float],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of first minus second over the images that both have, with its interval; a tie where it holds zero.

    Args:
        first: (update_id, image_id) -> score.
        second: of the other attack, alike.
        seed: of the resampling.
        resamples: how often.

    Raises:
        NonFiniteError: for NaN or infinity.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        return Interval(None, None, None, images=0, clusters=0, reason="no common images.")
    differences = [first[key] - second[key] for key in common]
    return mean_interval(differences, [update for update, _ in common], seed=seed, resamples=resamples)


def share_interval(
    successes: Sequence[bool | float] | NDArray[np.bool_],
    clusters: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Share of successes in [0, 1] with its interval.

    Where all or none succeed, every resample says the same, but 30 of 30 do not prove 100 %: there it is the Wilson
    interval with the number of clusters in the place of the number of images.

    Args:
        successes: (n,); also shares in [0, 1], such as that of an image's batch.
        clusters: n names, the update_id of each image.
        seed: of the resampling.
        resamples: how often.

    Raises:
        ShapeError: when the two differ in length.
    """
    found = mean_interval(np.asarray(successes, dtype=np.float64), clusters, seed=seed, resamples=resamples)
    if found.low is None or found.value not in (0.0, 1.0):
        return found
    margin = _WILSON**2 / (found.clusters + _WILSON**2)
    low, high = (0.0, margin) if found.value == 0 else (1 - margin, 1.0)
    return Interval(found.value, low, high, images=found.images, clusters=found.clusters)


def _resampled_means(
    sums: NDArray[np.float64], counts: NDArray[np.intp], generator: np.random.Generator, resamples: int
) -> NDArray[np.float64]:
    """Mean over images of each resample: clusters keep their sizes, so it is a ratio of two sums."""
    blocks = -(-resamples * len(sums) // _DRAWN_AT_ONCE)
    means = []
    for block in np.array_split(np.arange(resamples), blocks):
        drawn = generator.integers(len(sums), size=(len(block), len(sums)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)
