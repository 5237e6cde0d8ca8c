"""Statistics of the leaderboard against a slow reference, and on simulated data whose truth is known."""

import statistics
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, t

from gibench.errors import NonFiniteError, ShapeError
from gibench.metrics.intervals import mean_interval
from leaderboard import statistics as stats
from leaderboard.statistics import Clusters, all_pairs, mean, paired, ranks, risk_band, share


def slow_mean(values: list[float], batches: list[str], *, resamples: int, seed: int = 0) -> tuple[float, float, float]:
    """The interval as one would write it down: lists of images, drawn batch by batch with Python's generator."""
    random, names = Random(seed), sorted(set(batches))  # noqa: S311
    members = {name: [v for v, b in zip(values, batches, strict=True) if b == name] for name in names}
    means = sorted(
        statistics.fmean([value for name in random.choices(names, k=len(names)) for value in members[name]])
        for _ in range(resamples)
    )
    g = len(names)
    tail = norm.cdf((g / (g - 1)) ** 0.5 * t.ppf(0.025, g - 1))
    return means[int(tail * resamples)], statistics.fmean(values), means[int((1 - tail) * resamples) - 1]


def test_against_the_slow_reference() -> None:
    random = Random(1)  # noqa: S311
    batches = [f"u{index // 3}" for index in range(90)]
    shifts = {name: random.gauss(0, 2) for name in batches}
    values = [16 + shifts[name] + random.expovariate(1) for name in batches]
    low, center, high = slow_mean(values, batches, resamples=8000)
    found = mean(values, Clusters.of(batches), resamples=8000)
    assert found.value == pytest.approx(center, abs=1e-12)
    width = high - low
    assert (found.low, found.high) == (pytest.approx(low, abs=0.05 * width), pytest.approx(high, abs=0.05 * width))
    assert (found.images, found.clusters) == (90, 30)


def test_wider_than_the_plain_percentile_and_alike_for_many_batches() -> None:
    generator = np.random.default_rng(3)
    for batches, factor in ((6, 1.25), (2000, 0.97)):
        values, names = generator.normal(size=batches), [f"{index:04d}" for index in range(batches)]
        ours, plain = mean(values, Clusters.of(names)), mean_interval(values, names)
        assert ours.high - ours.low > factor * (plain.high - plain.low)
    assert ours.high - ours.low < 1.1 * (plain.high - plain.low)


def coverage(draw: object, truth: float, batches: list[str], victims: list[int] | None, simulations: int) -> float:
    """Share of simulations whose interval holds the truth; all in one matrix product."""
    clusters = Clusters.of(batches, victims)
    columns = np.stack([draw(np.random.default_rng([7, s])) for s in range(simulations)], axis=1)  # type: ignore[operator]
    low, _, high = stats._intervals(columns, clusters, 2000)
    return float(((low <= truth) & (truth <= high)).mean())


BIMODAL = 0.6 * 40 + 0.4 * 6


@pytest.mark.parametrize("batch_size", [1, 4])
def test_intervals_cover_in_93_to_97_percent(batch_size: int) -> None:
    """Scores as DLG has them: a batch is solved (40 dB) or diverges (6 dB), and images differ within it."""
    batches = [f"u{index // batch_size:03d}" for index in range(100 * batch_size)]

    def draw(generator: np.random.Generator) -> np.ndarray:
        solved = np.repeat(generator.random(100) < 0.6, batch_size)
        return np.where(solved, 40.0, 6.0) + generator.normal(0, 2.5, len(batches))

    assert 0.93 <= coverage(draw, BIMODAL, batches, None, 1000) <= 0.97


def test_intervals_cover_with_few_batches() -> None:
    """Twelve batches of 16: the plain percentile interval covers in 91 %."""
    batches = [f"u{index // 16:03d}" for index in range(192)]

    def draw(generator: np.random.Generator) -> np.ndarray:
        return np.repeat(generator.normal(18, 2, 12), 16) + generator.normal(0, 2.5, 192)

    assert 0.93 <= coverage(draw, 18.0, batches, None, 1000) <= 0.97


def test_intervals_ignoring_batches_do_not_cover() -> None:
    """The test above can fail: as if each image were a batch of its own, the interval misses most of the time."""
    names = [f"{index:03d}" for index in range(192)]

    def draw(generator: np.random.Generator) -> np.ndarray:
        return np.repeat(generator.normal(18, 2, 12), 16) + generator.normal(0, 2.5, 192)

    assert coverage(draw, 18.0, names, None, 300) < 0.7


def test_intervals_cover_other_victims() -> None:
    """Eight victims that differ more than batches do; the mean over all victims is what is to be covered."""
    batches = [f"u{index % 40:03d}" for index in range(320)]
    victims = [index // 40 for index in range(320)]

    def draw(generator: np.random.Generator) -> np.ndarray:
        victim, batch = generator.normal(0, 3, 8), generator.normal(0, 2, 40)
        return 20 + np.repeat(victim, 40) + np.tile(batch, 8) + generator.normal(0, 1, 320)

    assert 0.93 <= coverage(draw, 20.0, batches, victims, 1000) <= 0.97
    assert coverage(draw, 20.0, batches, None, 200) < 0.8  # drawing batches alone does not


def test_four_victims_are_spoken_of_as_they_are() -> None:
    batches, victims = [f"u{index % 30}" for index in range(120)], [index // 30 for index in range(120)]
    values = np.random.default_rng(0).normal(size=120)
    found, clusters = mean(values, Clusters.of(batches, victims)), Clusters.of(batches, victims)
    assert not clusters.crossed
    assert found.clusters == 30


def test_equal_values_give_no_width_and_one_batch_no_interval() -> None:
    found = mean([0.1] * 7, Clusters.of([f"u{index}" for index in range(7)]))
    assert (found.low, found.value, found.high) == (0.1, 0.1, 0.1)
    alone = mean([1.0, 2.0], Clusters.of(["u", "u"]))
    assert (alone.value, alone.low, alone.high) == (1.5, None, None)
    assert alone.reason


@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_what_is_no_column_of_numbers_is_refused(values: list[float]) -> None:
    with pytest.raises((ShapeError, NonFiniteError)):
        mean(values, Clusters.of(["a", "b"]))


def test_shares_of_all_and_none() -> None:
    clusters = Clusters.of([f"u{index}" for index in range(30)])
    for value in (0.0, 1.0):
        found = share([value] * 30, clusters)
        assert found.value == value
        assert found.high - found.low == pytest.approx(3.8415 / (30 + 3.8415), abs=1e-4)


scores = st.dictionaries(
    st.tuples(st.just(0), st.sampled_from([f"u{i}" for i in range(8)]), st.integers(0, 2)),
    st.floats(0, 100),
    min_size=1,
)


@given(rows=st.lists(scores, min_size=2, max_size=5))
def test_all_pairs_are_the_pairs(rows: list[dict[tuple[int, str, int], float]]) -> None:
    found = all_pairs(rows, resamples=200)
    for (i, j), each in found.items():
        alone, back = paired(rows[i], rows[j], resamples=200), paired(rows[j], rows[i], resamples=200)
        for name in ("value", "low", "high"):
            assert getattr(each, name) == pytest.approx(getattr(alone, name), abs=1e-9)
        assert (each.images, each.clusters, each.reason) == (alone.images, alone.clusters, alone.reason)
        if alone.value is not None:
            assert back.value == pytest.approx(-alone.value, abs=1e-9)


def test_ranks_count_who_is_better_beyond_noise() -> None:
    generator = np.random.default_rng(0)
    images = [(0, f"u{index:03d}", 0) for index in range(100)]
    common = generator.normal(0, 3, 100)
    levels = (20.0, 19.95, 15.0, 10.0)
    rows = [dict(zip(images, level + common + generator.normal(0, 1, 100), strict=True)) for level in levels]
    assert ranks(levels, all_pairs(rows), least=100) == [1, 1, 3, 4]
    assert ranks(levels, all_pairs(rows), least=101) == [1, 1, 1, 1]


def test_the_risk_band_is_the_share_at_each_delta() -> None:
    generator = np.random.default_rng(5)
    mse, failed = generator.uniform(0, 0.04, 60), generator.random(60) < 0.1
    clusters = Clusters.of([f"u{index // 2}" for index in range(60)])
    deltas = np.linspace(0, 0.25, 11)
    band = risk_band(mse, failed, clusters, deltas)
    for place, delta in enumerate(deltas):
        alone = share((np.sqrt(mse) > delta) | failed, clusters)
        assert band.risk[place] == pytest.approx(alone.value)
        assert (band.low[place], band.high[place]) == (pytest.approx(alone.low), pytest.approx(alone.high))
    assert band.risk[-1] == pytest.approx(failed.mean())
    assert (np.diff(band.risk) <= 0).all()


def test_the_same_numbers_each_time_and_in_any_order() -> None:
    values, names = list(np.random.default_rng(2).normal(size=50)), [f"u{index // 2}" for index in range(50)]
    stats._draws.cache_clear()
    first = mean(values, Clusters.of(names))
    stats._draws.cache_clear()
    assert mean(values, Clusters.of(names)) == first
    shuffled = Random(0).sample(range(50), 50)  # noqa: S311
    again = mean([values[i] for i in shuffled], Clusters.of([names[i] for i in shuffled]))
    assert again.low == pytest.approx(first.low, abs=1e-12)
