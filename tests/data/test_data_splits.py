"""The splits: disjoint, complete, in the stated shares, and where they were when the first numbers were published."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibench.data.splits import SPLIT_NAMES, SplitName, ids_hash, partition, shuffled, tune_and_score

names = st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=60)


@given(names, st.integers())
def test_a_shuffle_is_a_permutation(ids: list[str], seed: int) -> None:
    order = shuffled(ids, "order", seed)
    assert sorted(order) == list(range(len(ids)))
    assert order == shuffled(ids, "order", seed)


@given(names, st.data())
def test_new_images_do_not_reorder_the_others(ids: list[str], data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
    order = [ids[position] for position in shuffled(ids, "order", 0)]
    assert [kept[position] for position in shuffled(kept, "order", 0)] == [name for name in order if name in kept]


def test_keys_give_unrelated_orders() -> None:
    ids = [str(index) for index in range(1000)]
    same_place = sum(a == b for a, b in zip(shuffled(ids, "order", 0), shuffled(ids, "order", 1), strict=True))
    assert same_place < 10  # expected: 1


@given(names)
def test_tune_and_score_divide_the_test_images(ids: list[str]) -> None:
    rows = tune_and_score(ids)
    assert sorted(rows["tune"] + rows["score"]) == list(range(len(ids)))
    assert len(rows["tune"]) == round(len(ids) / 5)


@given(st.lists(st.integers(0, 5), max_size=80))
def test_a_partition_keeps_the_shares_of_each_class(labels: list[int]) -> None:
    rows = partition([f"image/{index}" for index in range(len(labels))], labels)
    assert sorted(rows["prior"] + rows["tune"] + rows["score"]) == list(range(len(labels)))
    counts = Counter(labels)
    for split, share in zip(SPLIT_NAMES, (0.6, 0.2, 0.2), strict=True):
        taken = Counter(labels[row] for row in rows[split])
        for label, count in counts.items():
            assert abs(taken[label] - share * count) <= 1


@given(names)
def test_a_hash_forgets_the_order_and_nothing_else(ids: list[str]) -> None:
    assert ids_hash(ids) == ids_hash(ids[::-1])
    if ids:
        assert ids_hash(ids) != ids_hash(ids[1:])


@pytest.mark.parametrize(
    ("split", "size", "digest"),
    [
        ("tune", 2000, "07f10f4eec7d577af40b3039a8d996a25ba316d869def8616b64def73ef4284d"),
        ("score", 8000, "b5322c94ebc9425835b62ebafc73699d02ed747f83ead9f448612020066f021c"),
    ],
)
def test_the_splits_of_cifar10_never_move(split: SplitName, size: int, digest: str) -> None:
    ids = [f"cifar10/test/{index:05d}" for index in range(10_000)]
    rows = tune_and_score(ids)[split]
    assert len(rows) == size
    assert ids_hash([ids[row] for row in rows]) == digest
