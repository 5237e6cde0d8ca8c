"""Matching: one optimal assignment within each update, whatever the order that the attack returns (rule R4)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import metrics as reference
from torch import Tensor

from gibench.errors import ShapeError
from gibench.matching import match, reorder


def images(updates: int, size: int, seed: int) -> Tensor:
    return torch.rand(updates, size, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def orders(updates: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(size, generator=generator) for _ in range(updates)])


@given(updates=st.integers(1, 4), size=st.integers(1, 12), seed=st.integers(0, 2**32))
def test_it_undoes_any_shuffle(updates: int, size: int, seed: int) -> None:
    private = images(updates, size, seed)
    shuffled = reorder(private + 1e-3 * images(updates, size, seed + 1), orders(updates, size, seed))
    permutation = match(shuffled, private)
    assert permutation.dtype == torch.int64
    assert torch.equal(reorder(orders(updates, size, seed), permutation), torch.arange(size).expand(updates, -1))
    assert (reorder(shuffled, permutation) - private).abs().max() <= 1.1e-3


@given(size=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_no_other_order_is_closer(size: int, seed: int) -> None:
    private, found = images(2, size, seed), images(2, size, seed + 1)
    matched = reorder(found, match(found, private))
    for update in range(2):
        cost = (matched[update].double() - private[update].double()).square().sum().item()
        best = reference.best_assignment_cost(found[update].double().numpy(), private[update].double().numpy())
        assert cost == pytest.approx(best, rel=1e-9)


@given(size=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_updates_never_mix(size: int, seed: int) -> None:
    private = images(3, size, seed)
    found = private.roll(1, dims=0)  # perfect answers, each under another update
    together = match(found, private)
    assert torch.equal(together.sort(1).values, torch.arange(size).expand(3, -1))
    for update in range(3):
        alone = match(found[update : update + 1], private[update : update + 1])
        assert torch.equal(together[update : update + 1], alone)


@given(bad=st.sampled_from([torch.nan, torch.inf, -torch.inf]), count=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_a_failed_reconstruction_takes_the_place_that_is_left(bad: float, count: int, seed: int) -> None:
    private = images(2, 4, seed)
    found = reorder(private, orders(2, 4, seed))
    found[0, :count] = bad
    permutation = match(found, private)
    matched = reorder(found, permutation)
    fine = matched[0].isfinite().flatten(1).all(1)
    assert fine.sum() == 4 - count
    assert torch.equal(matched[0][fine], private[0][fine])
    assert torch.equal(matched[1], private[1])
    if count == 4:
        assert permutation[0].tolist() == [0, 1, 2, 3]


def test_labels_follow_their_images() -> None:
    private = images(1, 3, 0)
    permutation = match(private[:, [1, 2, 0]], private)
    assert reorder(torch.tensor([[11, 12, 10]]), permutation).tolist() == [[10, 11, 12]]


@pytest.mark.parametrize("shape", [(1, 3, 3, 4), (1, 2, 3, 4, 4), (2, 3, 3, 4, 4), (1, 3, 1, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="cannot match"):
        match(torch.zeros(shape), torch.zeros(1, 3, 3, 4, 4))
