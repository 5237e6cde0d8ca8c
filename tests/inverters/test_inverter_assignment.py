"""The loss of the best assignment, against all permutations."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gibench.errors import ShapeError
from inverters.assignment import assigned


def by_hand(found: Tensor, images: Tensor) -> Tensor:
    """Every injective assignment, one after the other."""
    losses = [
        min(
            torch.stack([(row[slot] - image).square().mean() for slot, image in zip(order, truth, strict=True)]).mean()
            for order in permutations(range(len(row)), len(truth))
        )
        for row, truth in zip(found, images, strict=True)
    ]
    return torch.stack(losses)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 2), st.integers(0, 99))
def test_it_is_the_least_of_all_assignments(updates: int, size: int, spare: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    images = torch.rand(updates, size, 1, 2, 2, generator=draws)
    found = torch.rand(updates, size + spare, 1, 2, 2, generator=draws, requires_grad=True)
    losses, slots = assigned(found, images)
    reference = by_hand(found, images)
    assert torch.allclose(losses, reference, atol=1e-6)
    assert all(len(set(row)) == size for row in slots.tolist())
    (own,) = torch.autograd.grad(losses.sum(), found)
    (other,) = torch.autograd.grad(reference.sum(), found)
    assert torch.allclose(own, other, atol=1e-6)


def test_the_order_of_the_images_does_not_matter() -> None:
    images, found = torch.rand(2, 5, 3, 4, 4), torch.rand(2, 5, 3, 4, 4)
    assert torch.allclose(assigned(found, images)[0], assigned(found, images.flip(1))[0])


@pytest.mark.parametrize("found", [(2, 1, 3, 4, 4), (2, 3, 3, 4, 5), (1, 3, 3, 4, 4), (2, 3, 4, 4)])
def test_what_cannot_be_assigned_is_refused(found: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="cannot assign"):
        assigned(torch.zeros(found), torch.zeros(2, 2, 3, 4, 4))
