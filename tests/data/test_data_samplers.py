"""The label samplers keep their promises, against a first-fit walk that is too simple to be wrong."""

from collections import Counter
from itertools import chain, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibench.data.samplers import SamplerName, distinct, draw, k_per_class, natural, one_class
from gibench.errors import ConfigurationError

many_labels = st.lists(st.integers(0, 4), max_size=60)


def first_fit_distinct(labels: list[int], batch_size: int) -> list[list[int]]:
    """Walk along the images; take each that is unused and has a label that is new to the batch."""
    used: set[int] = set()
    batches: list[list[int]] = []
    while True:
        batch: list[int] = []
        for position, label in enumerate(labels):
            fits = position not in used and label not in [labels[taken] for taken in batch]
            if fits and len(batch) < batch_size:
                batch.append(position)
        if len(batch) < batch_size:
            return batches
        used.update(batch)
        batches.append(batch)


@given(many_labels, st.integers(1, 6))
def test_distinct_is_a_first_fit_walk(labels: list[int], batch_size: int) -> None:
    assert list(distinct(labels, batch_size)) == first_fit_distinct(labels, batch_size)


@given(many_labels, st.integers(1, 5), st.integers(1, 4))
def test_k_per_class(labels: list[int], k: int, classes: int) -> None:
    batches = list(k_per_class(labels, k * classes, k))
    for batch in batches:
        assert list(Counter(labels[position] for position in batch).values()) == [k] * classes
    left = Counter(labels) - Counter(labels[position] for position in chain(*batches))
    assert sum(count >= k for count in left.values()) < classes  # it stops only when it must


@given(many_labels, st.integers(1, 6))
def test_one_class(labels: list[int], batch_size: int) -> None:
    batches = list(one_class(labels, batch_size))
    assert len(batches) == sum(count // batch_size for count in Counter(labels).values())
    assert all(len({labels[position] for position in batch}) == 1 for batch in batches)


@given(many_labels)
def test_all_samplers_agree_on_single_images(labels: list[int]) -> None:
    alone = [[position] for position in range(len(labels))]
    assert list(natural(labels, 1)) == list(distinct(labels, 1)) == list(one_class(labels, 1)) == alone


@given(
    many_labels,
    st.sampled_from(["natural", "distinct", "one_class", "k_per_class"]),
    st.sampled_from([2, 4]),
    st.integers(1, 8),
)
def test_each_image_is_used_once_and_longer_runs_extend_shorter_ones(
    labels: list[int], sampler: SamplerName, batch_size: int, updates: int
) -> None:
    k = 2 if sampler == "k_per_class" else None
    try:
        long = draw(labels, sampler=sampler, batch_size=batch_size, updates=updates, k=k)
    except ConfigurationError as error:
        possible = int(str(error).split(" updates")[0].split()[-1])
        assert possible < updates
        long = draw(labels, sampler=sampler, batch_size=batch_size, updates=possible, k=k)  # so many there are
    used = list(chain(*long))
    assert len(set(used)) == len(used) == batch_size * len(long)
    for fewer in range(len(long)):
        assert draw(labels, sampler=sampler, batch_size=batch_size, updates=fewer, k=k) == long[:fewer]


def test_natural_and_distinct_attack_the_same_images_at_first() -> None:
    labels = [index % 10 for index in range(1000)]
    first = [set(chain(*islice(sampler(labels, 5), 100))) for sampler in (natural, distinct)]
    assert first[0] == first[1]


def test_too_many_updates_are_refused_with_the_possible_number() -> None:
    with pytest.raises(ConfigurationError, match=r"makes 1 updates of 2 images from 5 images of 3 classes.*at most 1"):
        draw([0, 1, 2, 2, 2], sampler="distinct", batch_size=2, updates=3)


@pytest.mark.parametrize("k", [None, 0, -1, 3])
def test_k_must_divide_the_batch(k: int | None) -> None:
    with pytest.raises(ConfigurationError, match="k that divides batch_size 4"):
        draw([0] * 12, sampler="k_per_class", batch_size=4, updates=1, k=k)
