"""Label scores: values by hand, an independent reference, and what the summary makes of records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import labels as reference

from gibench.metrics import label_scores

BATCHES = st.integers(1, 12).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(0, 6), min_size=size, max_size=size) for _ in range(2)])
)


def test_values_by_hand() -> None:
    found = label_scores([3, 3, 3, 5], [3, 5, 5, 7], num_classes=10)
    assert found == (0.5, 2 / 3, 1.0, 0.9)
    assert label_scores([1, 2], [2, 1]) == (1.0, 1.0, 1.0, None)
    assert label_scores([1, 2], [None, None]) == (0.0, 0.0, 0.0, None)
    assert label_scores([1, 1], [1, None]).accuracy == 0.5


@given(BATCHES)
def test_scores_are_those_of_the_reference(batches: tuple[list[int], list[int]]) -> None:
    true, found = batches
    assert label_scores(true, list(found), num_classes=7) == pytest.approx(reference.label_scores(true, found, 7))


@given(BATCHES, st.randoms())
def test_the_order_does_not_matter(batches: tuple[list[int], list[int]], random: st.DataObject) -> None:
    true, found = batches
    mixed = found.copy()
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert label_scores(true, list(found)) == label_scores(true, list(mixed))
    assert label_scores(true, list(true)) == (1.0, 1.0, 1.0, None)
