"""Label sources."""

from pathlib import Path

import pytest
import torch
from helpers import batch_of, small_victim
from torch import nn

from gibench.attacks import idlg, inverting_gradients
from gibench.clients import FedSGD
from gibench.data import CIFAR10
from gibench.errors import RefusalError, ThreatModelError
from gibench.labels import IDLG, Given
from gibench.types import ThreatModel
from gibench.victims import Victim, lenet


def threat(labels: str) -> ThreatModel:
    return ThreatModel(victim="initial", batch_norm="absent", labels=labels)  # type: ignore[arg-type]


def test_given_labels_keep_their_order_or_are_sorted_from_counts() -> None:
    batch = batch_of(3, 4)
    ordered = Given()(FedSGD(small_victim(), threat_model=threat("ordered"))(batch))
    counted = Given()(FedSGD(small_victim(), threat_model=threat("counts"))(batch))
    assert torch.equal(ordered, batch.labels)
    assert torch.equal(counted, batch.labels.sort(1).values)


@pytest.mark.parametrize("labels", ["none", "set"])
def test_labels_that_are_not_known_are_an_error_before_any_compute(labels: str) -> None:
    with pytest.raises(ThreatModelError, match=r"threat_model\.labels"):
        inverting_gradients(steps=1).check(threat(labels))


def test_idlg_reads_every_label_of_a_sigmoid_net(cifar10_root: Path) -> None:
    """Each of 100 CIFAR-10 images, with the labels hidden."""
    data = CIFAR10(cifar10_root, updates=100, together=100)
    batch = next(iter(data.predict_dataloader()))
    observation = FedSGD(lenet(), threat_model=threat("none"))(batch)
    assert torch.equal(IDLG()(observation), batch.labels)


def test_idlg_is_for_one_image() -> None:
    observation = FedSGD(small_victim())(batch_of(1, 2))
    for rule in (idlg(steps=1), IDLG()):
        with pytest.raises(RefusalError, match="one image"):
            rule(observation)


def test_idlg_needs_a_linear_head() -> None:
    net = nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())
    victim = Victim(net, architecture="conv", image_shape=(3, 8, 8), num_classes=10, initialization="default")
    with pytest.raises(RefusalError, match="linear"):
        IDLG()(FedSGD(victim)(batch_of(1, 1)))
