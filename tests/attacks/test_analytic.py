"""The bias attack where there is little or nothing to read."""

import torch
from helpers import batch_of, fully_connected
from torch import nn

from gibench.attacks import BiasAttack
from gibench.clients import FedSGD
from gibench.victims import Victim


def wide(rows: int) -> Victim:
    """A linear classifier with `rows` classes: its first layer has no more rows than that."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, rows))
    return Victim(network, architecture="linear", image_shape=(3, 8, 8), num_classes=rows, initialization="default")


def test_more_images_than_rows_repeats_the_best() -> None:
    found = BiasAttack()(FedSGD(wide(10))(batch_of(2, 32)))
    assert found.images.shape == (2, 32, 3, 8, 8)
    assert all(len(images.unique(dim=0)) <= 10 for images in found.images)


def test_a_layer_that_is_never_active_is_a_failure_and_no_picture() -> None:
    victim = fully_connected()
    with torch.no_grad():
        victim.network[1].bias.fill_(-100.0)
    for size in (1, 3):
        assert BiasAttack()(FedSGD(victim)(batch_of(2, size))).images.isnan().all()


def test_a_ratio_that_overflows_is_a_failure_and_no_picture() -> None:
    observation = FedSGD(fully_connected())(batch_of(1, 2))
    observation.update["network.1.bias"].zero_()
    assert observation.update["network.1.weight"].abs().max() > 0
    assert not BiasAttack()(observation).images.isfinite().any()


def test_rows_are_chosen_valid_first_then_strong_then_distinct() -> None:
    """Strengths far below one still count: the gradients of a good victim are small."""
    images = torch.tensor([0.1, 0.2, 1.7, 0.2, torch.inf, 0.4])[:, None, None, None].expand(6, 3, 2, 2)
    strength = torch.tensor([1e-9, 3e-9, 9e-9, 2e-9, 8e-9, 4e-9])
    chosen = BiasAttack._rows(images, 4, strength)[:, 0, 0, 0]
    assert torch.equal(chosen, torch.tensor([0.4, 0.2, 0.1, 1.7]))
