"""Rank correlations with intervals that respect updates, pooled over scenarios or within them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from gibench.metrics.intervals import LEVEL, Interval

RESAMPLES = 1000


def rank_correlation(
    predicted: Sequence[float],
    reached: Sequence[float],
    clusters: Sequence[str],
    *,
    within: Sequence[str] | None = None,
    seed: int = 0,
) -> Interval:
    """Spearman's rank correlation with its 95 % bootstrap interval; each resample draws whole clusters.

    Within scenarios it is the correlation of the ranks among a scenario's own, less their mean: nothing is left of the
    differences between scenarios.

    Args:
        predicted: (n,).
        reached: (n,).
        clusters: n names: an update that several scenarios share is one cluster.
        within: n names of scenarios; None pools them.
        seed: of the resampling.
    """
    x, y = (np.unique(np.asarray(values, float), return_inverse=True)[1] for values in (predicted, reached))
    member, strata = (
        np.unique(np.asarray(names), return_inverse=True)[1] for names in (clusters, within or [""] * len(x))
    )
    count = int(member.max()) + 1 if len(member) else 0
    if len(x) < 3 or count < 2:
        return Interval(None, None, None, images=len(x), clusters=count, reason="too few updates.")
    value = _of_ranks(x, y, strata)
    if not np.isfinite(value):
        return Interval(None, None, None, images=len(x), clusters=count, reason="all the same.")
    rows = [np.flatnonzero(member == cluster) for cluster in range(count)]
    source = np.random.default_rng(seed)
    found = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([rows[cluster] for cluster in source.integers(count, size=count)])
        found.append(_of_ranks(x[drawn], y[drawn], strata[drawn]))
    kept = [number for number in found if np.isfinite(number)]
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), images=len(x), clusters=count)


def _of_ranks(x: NDArray[np.int64], y: NDArray[np.int64], strata: NDArray[np.int64]) -> float:
    """Spearman's correlation, within strata, of values numbered from 0; NaN where one is constant in each stratum."""
    first, second = (_centered_ranks(values, strata) for values in (x, y))
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale > 0 else float("nan")


def _centered_ranks(values: NDArray[np.int64], strata: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rank among one's own stratum, less the mean rank there."""
    ranks = rankdata(strata * (values.max() + 1) + values)  # stratum after stratum
    means = np.bincount(strata, weights=ranks) / np.maximum(np.bincount(strata), 1)
    return np.asarray(ranks - means[strata], np.float64)
