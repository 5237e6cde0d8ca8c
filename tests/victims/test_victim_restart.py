"""Order and augmentation: random numbers that follow from counters, so that a killed training continues exactly."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gibench.victims.restart import EpochOrder, shift_and_mirror


def test_each_epoch_has_each_image_once_in_an_order_of_its_own() -> None:
    order = EpochOrder(50, 16, seed=3)
    epochs = []
    for epoch in range(3):
        order.set_epoch(epoch)
        batches = list(order)
        assert [len(batch) for batch in batches] == [16, 16, 16, 2]
        assert len(order) == 4
        epochs.append(torch.cat(batches))
        assert torch.equal(epochs[-1].sort().values, torch.arange(50))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_the_epoch_may_be_set_after_the_iterator_was_asked_for() -> None:
    order = EpochOrder(50, 50, seed=3)
    early = iter(order)
    order.set_epoch(2)
    assert torch.equal(next(early), next(iter(order)))


def test_shift_and_mirror_is_a_crop_of_the_padded_image() -> None:
    images = torch.rand(30, 3, 6, 5)
    padded = F.pad(images, (4, 4, 4, 4))
    found = set()
    for image, padding in zip(shift_and_mirror(images), padded, strict=True):
        matches = [
            (row, column, mirrored)
            for row in range(9)
            for column in range(9)
            for mirrored in (False, True)
            if torch.equal(image, _crop(padding, row, column, mirrored=mirrored))
        ]
        assert matches
        found.add(matches[0])
    assert len(found) > 15
    assert {mirrored for _, _, mirrored in found} == {False, True}


def _crop(padded: Tensor, row: int, column: int, *, mirrored: bool) -> Tensor:
    crop = padded[:, row : row + 6, column : column + 5]
    return crop.flip(2) if mirrored else crop
