"""Statistics of the leaderboard: means with intervals that respect batches, paired differences, ties, risk bands.

**Intervals.** Images of one private batch leak together, so the bootstrap draws whole batches. The plain percentile
interval is too narrow for few batches: the bootstrap's variance misses the factor G / (G - 1), and a mean of G batches
has Student's quantiles, not the normal ones. So the quantiles are taken further out (the expanded percentile interval
of Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69, 2015, section 4.4):

    alpha' / 2 = Phi( sqrt(G / (G - 1)) * t_{G - 1}^{-1}(alpha / 2) )

which is exact for normal batches and still follows the skewness of others.

**Victims.** Where the same batches are attacked under V victims (seeds of the initialization), a value has two random
factors that cross. From LEAST_VICTIMS victims on, both are drawn, independently, and a value counts as often as its
victim times its batch was drawn (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1, 2007); G is then the
smaller of the two numbers. With fewer victims only batches are drawn, and the interval speaks of those victims alone.

All resampling is seeded, and draws depend on the number of batches only, so that the same records give the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from gibench.errors import NonFiniteError, ShapeError
from gibench.metrics.intervals import Interval

RESAMPLES = 4000
LEVEL = 0.95
LEAST_VICTIMS = 5
_SEED = 20260101
_NORMAL = float(norm.ppf((1 + LEVEL) / 2))

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Clusters:
    """To which private batch and to which victim each of n values belongs.

    batch: (n,), index of the private batch; victim: (n,), of the victim; batches, victims: how many there are.
    """

    batch: NDArray[np.intp]
    victim: NDArray[np.intp]
    batches: int
    victims: int

    @classmethod
    def of(cls, batches: Sequence[str], victims: Sequence[int] | None = None) -> "Clusters":
        """Number the names; without `victims` all values belong to one."""
        rows = [0] * len(batches) if victims is None else victims
        if len(rows) != len(batches):
            raise ShapeError(f"{len(batches)} batches and {len(rows)} victims; pass one of each per value.")
        names, batch = np.unique(np.asarray(batches, dtype=np.str_), return_inverse=True)
        seeds, victim = np.unique(np.asarray(rows, dtype=np.intp), return_inverse=True)
        return cls(batch.astype(np.intp), victim.astype(np.intp), len(names), len(seeds))

    @property
    def crossed(self) -> bool:
        """Whether victims are drawn, too."""
        return self.victims >= LEAST_VICTIMS

    @property
    def independent(self) -> int:
        """G: how many independent draws stand behind a mean."""
        return min(self.batches, self.victims) if self.crossed else self.batches


def mean(values: ArrayLike, clusters: Clusters, *, resamples: int = RESAMPLES) -> Interval:
    """Mean with its 95 % interval; see the module. (n,) finite values.

    Raises:
        ShapeError: without values, or where their number is not that of the clusters.
        NonFiniteError: for NaN or infinity.
    """
    column = _column(values, clusters)
    low, center, high = (float(each[0]) for each in _intervals(column[:, None], clusters, resamples))
    if clusters.independent < 2:
        return Interval(center, None, None, len(column), clusters.independent, "one batch only; run more.")
    return Interval(center, low, high, len(column), clusters.independent)


def share(successes: ArrayLike, clusters: Clusters, *, resamples: int = RESAMPLES) -> Interval:
    """Share of successes with its interval; where all or none succeed, Wilson's with G in the place of n.

    There every resample says the same, but 30 of 30 do not prove 100 %.
    """
    found = mean(np.asarray(successes, dtype=np.float64), clusters, resamples=resamples)
    if found.low is None or found.value not in (0.0, 1.0):
        return found
    low, high = _wilson(found.value, found.clusters)
    return Interval(found.value, low, high, found.images, found.clusters)


def paired(
    first: Mapping[tuple[int, str, int], float],
    second: Mapping[tuple[int, str, int], float],
    *,
    resamples: int = RESAMPLES,
) -> Interval:
    """Mean of first minus second over the images that both have: (run, update id, position) -> score."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return Interval(None, None, None, images=0, clusters=0, reason="no common images.")
    differences = [first[key] - second[key] for key in common]
    clusters = Clusters.of([update for _, update, _ in common], [run for run, _, _ in common])
    return mean(differences, clusters, resamples=resamples)


def all_pairs(
    scores: Sequence[Mapping[tuple[int, str, int], float]], *, resamples: int = RESAMPLES
) -> dict[tuple[int, int], Interval]:
    """`paired` of each two, (i, j) with i < j; pairs on the same images are resampled together, as one matrix."""
    groups: dict[tuple[tuple[int, str, int], ...], list[tuple[int, int]]] = {}
    keys = [frozenset(each) for each in scores]
    ordered: dict[frozenset[tuple[int, str, int]], tuple[tuple[int, str, int], ...]] = {}
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            common = keys[i] & keys[j]
            images = ordered.setdefault(common, tuple(sorted(common)))
            groups.setdefault(images, []).append((i, j))
    found: dict[tuple[int, int], Interval] = {}
    for images, pairs in groups.items():
        if not images:
            found |= {pair: Interval(None, None, None, 0, 0, "no common images.") for pair in pairs}
            continue
        clusters = Clusters.of([update for _, update, _ in images], [run for run, _, _ in images])
        columns = {
            row: np.array([scores[row][key] for key in images]) for row in {row for pair in pairs for row in pair}
        }
        differences = np.stack([columns[i] - columns[j] for i, j in pairs], axis=1)
        lows, means, highs = _intervals(differences, clusters, resamples)
        for pair, low, center, high in zip(pairs, lows.tolist(), means.tolist(), highs.tolist(), strict=True):
            found[pair] = Interval(center, low, high, len(images), clusters.independent)
            if clusters.independent < 2:
                found[pair] = Interval(center, None, None, len(images), 1, "one batch only; run more.")
    return found


def ranks(means: Sequence[float], pairs: Mapping[tuple[int, int], Interval], *, least: int) -> list[int]:
    """Rank of each row: 1 + the number of rows that are better beyond noise on `least` common images or more.

    Rows of one rank are a tie group. `pairs` is what `all_pairs` says of the same rows.
    """

    def better(i: int, j: int) -> bool:
        """Whether row i is above row j by an interval that excludes zero."""
        found = pairs[min(i, j), max(i, j)]
        if found.images < least or found.low is None or found.high is None:
            return False
        return found.low > 0 if i < j else found.high < 0

    rows = range(len(means))
    return [1 + sum(better(other, row) for other in rows if other != row) for row in rows]


@dataclass(frozen=True)
class Band:
    """R(delta) with its pointwise 95 % band: `deltas`, `risk`, `low` and `high`, all (D,)."""

    deltas: Floats
    risk: Floats
    low: Floats
    high: Floats


def risk_band(
    mse: ArrayLike, failed: ArrayLike, clusters: Clusters, deltas: ArrayLike, *, resamples: int = RESAMPLES
) -> Band:
    """Share of images whose RMS error exceeds delta (rule R18); a failed image is missed at each delta."""
    errors = np.sqrt(_column(mse, clusters))
    grid = np.asarray(deltas, dtype=np.float64)
    missed = (errors[:, None] > grid[None]) | np.asarray(failed, dtype=bool)[:, None]
    low, risk, high = _intervals(missed.astype(np.float64), clusters, resamples)
    for place in np.flatnonzero((risk == 0) | (risk == 1)):
        low[place], high[place] = _wilson(float(risk[place]), clusters.independent)
    return Band(grid, risk, np.clip(low, 0, 1), np.clip(high, 0, 1))


@lru_cache(maxsize=256)
def expanded(level: float, independent: int) -> float:
    """The lower quantile that the expanded percentile interval takes; (1 - level) / 2 for very many batches."""
    if independent < 2:
        return 0.0
    stretch = np.sqrt(independent / (independent - 1))
    return float(norm.cdf(stretch * t.ppf((1 - level) / 2, independent - 1)))


def _column(values: ArrayLike, clusters: Clusters) -> Floats:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or column.shape != clusters.batch.shape or column.size == 0:
        raise ShapeError(f"values have shape {column.shape}, clusters {clusters.batch.shape}; pass (n,), n at least 1.")
    if not np.isfinite(column).all():
        raise NonFiniteError("values hold NaN or infinity; a failed image scores as the mean-image floor (rule R7).")
    return column


def _intervals(columns: Floats, clusters: Clusters, resamples: int) -> tuple[Floats, Floats, Floats]:
    """Low, mean and high of each column of (n, k)."""
    lowest = columns.min(0)  # taken out before and put back after, so that equal values stay equal
    cells = clusters.batch + clusters.batches * clusters.victim
    size = clusters.batches * clusters.victims
    counts = np.bincount(cells, minlength=size).astype(np.float64)
    sums = np.zeros((size, columns.shape[1]))
    np.add.at(sums, cells, columns - lowest)
    center = lowest + sums.sum(0) / counts.sum()
    if clusters.independent < 2:
        return center, center, center
    weights = _weights(clusters, resamples)
    totals = weights @ counts
    drawn = totals > 0  # where batches are missing under some victims, a resample can be empty
    means = lowest + (weights[drawn] @ sums) / totals[drawn, None]
    tail = expanded(LEVEL, clusters.independent)
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, center, high


def _weights(clusters: Clusters, resamples: int) -> Floats:
    """(R, victims * batches): how often each cell counts in each resample."""
    batches = _draws(clusters.batches, resamples, 0)
    if not clusters.crossed:
        return batches if clusters.victims == 1 else np.tile(batches, (1, clusters.victims))
    victims = _draws(clusters.victims, resamples, 1)
    return np.asarray((victims[:, :, None] * batches[:, None, :]).reshape(resamples, -1), dtype=np.float64)


@lru_cache(maxsize=16)
def _draws(count: int, resamples: int, stream: int) -> Floats:
    """(R, count): how often each of `count` was drawn, with replacement."""
    generator = np.random.default_rng([_SEED, stream, count])
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    drawn.setflags(write=False)
    return drawn


def _wilson(value: float, independent: int) -> tuple[float, float]:
    margin = _NORMAL**2 / (independent + _NORMAL**2)
    return (0.0, margin) if value == 0 else (1 - margin, 1.0)
