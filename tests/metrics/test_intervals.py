"""Intervals: exact where all resamples can be listed, honest on clustered data, and never more than the data say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import metrics as reference

from gibench.errors import NonFiniteError, ShapeError
from gibench.metrics import mean_interval, paired_difference, share_interval

VALUES = [10.0, 12.0, 11.0, 20.0, 15.0, 3.0, 8.0, 9.5]
CLUSTERS = ["a", "a", "a", "b", "c", "c", "d", "d"]


@pytest.mark.parametrize("clusters", [CLUSTERS, list("abcdabcd")])
def test_it_agrees_with_the_list_of_all_resamples(clusters: list[str]) -> None:
    found = mean_interval(VALUES, clusters, resamples=200_000)
    low, high = np.quantile(reference.exact_bootstrap(VALUES, clusters), [0.025, 0.975])
    assert (found.value, found.images, found.clusters) == (float(np.mean(VALUES)), 8, 4)
    assert found.low == pytest.approx(low, abs=0.05)
    assert found.high == pytest.approx(high, abs=0.05)


def simulate(generator: np.random.Generator) -> tuple[list[float], list[str]]:
    """40 updates of 1 to 8 images with mean 0; the update explains half of the variance."""
    sizes = generator.integers(1, 9, size=40)
    shared = np.repeat(generator.normal(size=40), sizes)
    names = np.repeat([f"update {u}" for u in range(40)], sizes)
    return (shared + generator.normal(size=sizes.sum())).tolist(), names.tolist()


def test_95_percent_intervals_cover_in_90_to_98_percent() -> None:
    generator = np.random.default_rng(0)
    clustered = pooled = 0
    for seed in range(300):
        values, names = simulate(generator)
        for_updates = mean_interval(values, names, seed=seed, resamples=1000)
        for_images = mean_interval(values, [str(i) for i in range(len(values))], seed=seed, resamples=1000)
        clustered += for_updates.low <= 0 <= for_updates.high  # type: ignore[operator]
        pooled += for_images.low <= 0 <= for_images.high  # type: ignore[operator]
    assert 0.90 <= clustered / 300 <= 0.98
    assert pooled / 300 < 0.85  # what drawing single images would claim


@given(order=st.permutations(range(8)))
def test_the_order_of_the_images_does_not_matter(order: list[int]) -> None:
    shuffled = mean_interval([VALUES[i] for i in order], [CLUSTERS[i] for i in order], resamples=50)
    assert shuffled == mean_interval(VALUES, CLUSTERS, resamples=50)


@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=20), data=st.data())
def test_it_lies_within_the_data_and_around_the_mean(values: list[float], data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from("abcd"), min_size=len(values), max_size=len(values)))
    found = mean_interval(values, names, resamples=100)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    if len(set(names)) > 1:
        assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9  # type: ignore[operator]


def test_the_same_seed_gives_the_same_interval_and_another_one_does_not() -> None:
    first, again, other = (mean_interval(VALUES, CLUSTERS, seed=seed, resamples=99) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_many_clusters_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = mean_interval(VALUES, CLUSTERS, resamples=1000)
    monkeypatch.setattr("gibench.metrics.intervals._DRAWN_AT_ONCE", 40)
    assert mean_interval(VALUES, CLUSTERS, resamples=1000) == expected


def test_one_cluster_has_no_interval_and_says_so() -> None:
    found = mean_interval([1.0, 2.0], ["a", "a"])
    assert (found.value, found.low, found.high) == (1.5, None, None)
    assert "one update" in str(found.reason)


@given(value=st.floats(-100, 100), count=st.integers(2, 9))
def test_equal_values_have_an_interval_of_width_zero(value: float, count: int) -> None:
    found = mean_interval([value] * count, [str(i // 2) for i in range(count - 1)] + ["last"], resamples=20)
    assert found.value == found.low == found.high == value


def test_no_values_is_not_a_number() -> None:
    found = mean_interval([], [])
    assert (found.value, found.images, found.reason) == (None, 0, "no images.")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NonFiniteError):
        mean_interval([1.0, bad], ["a", "b"])


def test_a_missing_cluster_is_refused() -> None:
    with pytest.raises(ShapeError):
        mean_interval([1.0, 2.0], ["a"])


def test_pairs_are_compared_on_common_images_only() -> None:
    first = {("a", "1"): 20.0, ("a", "2"): 22.0, ("b", "3"): 30.0, ("c", "4"): 99.0}
    second = {("a", "1"): 19.0, ("a", "2"): 20.0, ("b", "3"): 27.0, ("d", "5"): 0.0}
    found = paired_difference(first, second)
    assert (found.value, found.images, found.clusters) == (2.0, 3, 2)
    assert found.low == 1.5  # only update a
    assert found.high == 3.0  # only update b
    assert paired_difference(first, {("d", "5"): 0.0}).reason == "no common images."


def test_a_paired_interval_is_narrower_than_two_separate_ones() -> None:
    generator = np.random.default_rng(0)
    image = generator.normal(15, 3, size=100)
    first = {(f"{i:03}", "x"): float(value + 0.5 + generator.normal(0, 0.5)) for i, value in enumerate(image)}
    second = {(f"{i:03}", "x"): float(value) for i, value in enumerate(image)}
    found, alone = paired_difference(first, second), mean_interval(list(second.values()), [key[0] for key in second])
    assert found.low > 0  # type: ignore[operator]
    assert found.high - found.low < 0.5 * (alone.high - alone.low)  # type: ignore[operator]


def test_a_share_has_an_interval_even_when_all_agree() -> None:
    names = [str(i) for i in range(30)]
    half = share_interval([True, False] * 15, names)
    assert half.value == 0.5
    assert 0.25 < half.low < 0.4  # type: ignore[operator]
    every, none = share_interval([True] * 30, names), share_interval([False] * 30, names)
    assert (every.value, every.high, none.value, none.low) == (1.0, 1.0, 0.0, 0.0)
    assert every.low == pytest.approx(0.8865, abs=1e-4)  # Wilson 1927, n = 30
    assert none.high == pytest.approx(0.1135, abs=1e-4)
    assert share_interval([True, False] * 2, ["a", "a", "b", "b"]).low == 0.5  # each update alike
    assert share_interval([True] * 9, ["a"] * 9).low is None
