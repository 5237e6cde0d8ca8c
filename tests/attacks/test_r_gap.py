"""R-GAP is exact on chains, chooses margin and label by its own objective, and says what it does not serve."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from helpers import batch_of, leaky_chain, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.attacks import RGAP
from gibench.attacks.r_gap import TURN, UNLABELED, Equations, margins
from gibench.clients import FedAvg, FedSGD
from gibench.data import CIFAR10, MNIST
from gibench.diagnostics import rank_deficiency
from gibench.errors import RefusalError, ThreatModelError
from gibench.metrics import psnr
from gibench.types import Batch, Reconstruction, ThreatModel
from gibench.victims import Victim, cnn6, fcn3
from gibench.victims.chain import read_chain

HIDDEN = ThreatModel(victim="initial", batch_norm="absent", labels="none")


def scores(found: Reconstruction, batch: Batch) -> Tensor:
    return psnr(found.images.flatten(0, 1), batch.images.flatten(0, 1))


def relabeled(batch: Batch, victim: Victim, *, right: bool) -> Batch:
    """The batch with labels that a binary victim predicts rightly, or wrongly."""
    with torch.no_grad():
        positive = victim(batch.images[:, 0])[:, -1] > 0
    labels = torch.where(positive == right, victim.num_classes - 1, 0)[:, None]
    return batch.model_copy(update={"labels": labels})


@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 99.0), (torch.float32, 60.0)])
def test_exact_on_a_small_chain_without_labels(dtype: torch.dtype, least: float) -> None:
    batch = batch_of(4, 1).to(dtype)
    found = RGAP()(FedSGD(leaky_chain(), threat_model=HIDDEN).to(dtype)(batch))
    assert scores(found, batch).min() > least
    assert torch.equal(found.labels, batch.labels)  # type: ignore[arg-type]
    assert found.gradient_evaluations.tolist() == [1] * 4


@pytest.mark.parametrize("labels", ["counts", "set"])
@pytest.mark.parametrize("binary", [True, False])
def test_the_counts_of_one_label_are_the_label(binary: bool, labels: Literal["counts", "set"]) -> None:
    """As with ordered labels, of a right prediction two margins are tried, in place of four starts."""
    victim = leaky_chain(binary=binary, num_classes=2 if binary else 10).double()
    batch = batch_of(4, 1).to(torch.float64)
    batch = relabeled(batch, victim, right=True) if binary else batch
    threat_model = ThreatModel(victim="initial", batch_norm="absent", labels=labels)
    found = RGAP()(FedSGD(victim, threat_model=threat_model)(batch))
    assert scores(found, batch).min() > 99
    assert found.labels is None
    assert found.gradient_evaluations.tolist() == [2 if binary else 1] * 4


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("scale", [1.0, 150.0])
def test_exact_with_the_binary_head(scale: float, right: bool, known: bool) -> None:
    """Small and large margins, of either sign: a right prediction has two margins, an unknown label doubles them."""
    victim = leaky_chain(binary=True, num_classes=2).double()
    with torch.no_grad():
        victim.network[-2].weight.mul_(scale)
    batch = relabeled(batch_of(4, 1).to(torch.float64), victim, right=right)
    with torch.no_grad():
        large = (victim(batch.images[:, 0])[:, 1].abs() > TURN).sum()
    assert (large >= 3) == (scale > 1)
    observation = FedSGD(victim, threat_model=None if known else HIDDEN)(batch)
    found = RGAP()(observation)
    assert scores(found, batch).min() > 99
    assert found.objective.max() < 1e-9
    assert found.gradient_evaluations.tolist() == [(2 if right else 1) * (1 if known else 2)] * 4
    if known:
        assert found.labels is None
    else:
        assert torch.equal(found.labels, batch.labels)  # type: ignore[arg-type]


def test_two_multiples_of_an_image_can_send_the_same_update() -> None:
    """Positive homogeneity: of a right prediction's two margins neither is wrong, where both images fit the box."""
    victim = leaky_chain(binary=True, num_classes=2).double()
    batch = batch_of(1, 1).to(torch.float64)
    with torch.no_grad():
        victim.network[-2].weight.mul_(3 / victim(batch.images[:, 0])[0, 1].abs())  # a margin of 3
    batch = relabeled(batch, victim, right=True)
    client = FedSGD(victim)
    small, large = margins(-3 / (1 + math.exp(3)))
    assert large == pytest.approx(3)
    darker = victim.denormalize(small / large * victim.normalize(batch.images))
    observed, simulated = client(batch).update, client.simulate(darker, batch.labels)
    for name, value in observed.items():
        torch.testing.assert_close(simulated[name], value)
    assert psnr(darker.flatten(0, 1), batch.images.flatten(0, 1)) < 20
    assert scores(RGAP()(client(batch)), batch) > 99


def test_a_half_of_many_classes_is_no_label() -> None:
    victim = leaky_chain(binary=True)
    batch = batch_of(2, 1).to(torch.float64)
    found = RGAP()(FedSGD(victim, threat_model=HIDDEN).double()(batch))
    assert scores(found, batch).min() > 99
    assert found.labels is None


@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 99.0), (torch.float32, 80.0)])
@pytest.mark.parametrize("head", ["binary", "multiclass"])
def test_fcn3_on_real_digits(
    head: Literal["binary", "multiclass"], dtype: torch.dtype, least: float, cifar10_root: Path
) -> None:
    if not (cifar10_root / "mnist.npz").is_file():
        pytest.skip("needs MNIST: set GIBENCH_DATA to a folder with mnist.npz.")
    batch = next(iter(MNIST(cifar10_root, updates=4, together=4).predict_dataloader())).to(dtype)
    found = RGAP()(FedSGD(fcn3(head=head)).to(dtype)(batch))
    assert scores(found, batch).min() > least


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "dtype", "least", "most"),
    [
        ({}, torch.float64, 99.0, 100.0),
        ({}, torch.float32, 80.0, 100.0),
        ({"head": "binary"}, torch.float64, 99.0, 100.0),
        ({"deficient": True}, torch.float64, 5.0, 15.0),
    ],
    ids=["float64", "float32", "binary", "deficient"],
)
def test_cnn6_on_real_images(
    settings: dict[str, Any], dtype: torch.dtype, least: float, most: float, cifar10_root: Path
) -> None:
    """The published figure is 49 dB, on one image; CNN6-d is not determined by its update."""
    batch = next(iter(CIFAR10(cifar10_root, updates=2, together=2).predict_dataloader())).to(dtype)
    found = scores(RGAP()(FedSGD(cnn6(**settings)).to(dtype)(batch)), batch)
    assert least < found.min()
    assert found.max() <= most


@given(st.floats(-30, 30).filter(lambda margin: margin <= 0 or margin > 1e-290))
def test_margins_invert_the_product(margin: float) -> None:
    found = margins(-margin / (1 + math.exp(margin)))
    assert len(found) == (1 if margin <= 0 else 2) or abs(margin - TURN) < 1e-6  # where the two meet
    tolerance = 1e-6 if abs(margin - TURN) < 1e-2 else 1e-9  # the slope vanishes at the turn
    assert min(abs(each - margin) for each in found) < tolerance * max(1.0, math.exp(margin - 20))


def test_margins_where_there_is_none() -> None:
    assert margins(-0.5) == [TURN]
    assert math.isnan(margins(math.nan)[0])
    assert math.exp(TURN) * (TURN - 1) == pytest.approx(1)


@pytest.mark.parametrize("channels", [2, 12], ids=["deficient", "determined"])
def test_a_layer_is_solved_as_numpy_solves_it(channels: int) -> None:
    """With right-hand sides that no input fits: least squares of both kinds scaled alike, of least norm."""
    layer = read_chain(leaky_chain(channels=channels)).layers[0]
    source = torch.Generator().manual_seed(0)
    k, z = (torch.randn(channels, 16, generator=source, dtype=torch.float64) for _ in range(2))
    update = torch.randn(channels, 3, 3, 3, generator=source, dtype=torch.float64)

    def gradient(x: Tensor) -> Tensor:
        def product(weight: Tensor) -> Tensor:
            return (F.conv2d(x.reshape(1, 3, 8, 8), weight, stride=2, padding=1).flatten() * k.flatten()).sum()

        return torch.func.grad(product)(layer.weight).flatten()

    zero = torch.zeros(192, dtype=torch.float64)
    scale = z.norm() / update.norm()
    matrix = torch.cat(
        [torch.func.jacrev(lambda x: layer(x).flatten())(zero), scale * torch.func.jacrev(gradient)(zero)]
    )
    right = torch.cat([z.flatten(), scale * update.flatten()])
    expected = torch.linalg.pinv(matrix) @ right
    assert (torch.linalg.matrix_rank(matrix) < 192) == (channels == 2)
    found = Equations(layer).solve(k, z.flatten(), update.permute(0, 2, 3, 1).flatten(0, 2))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_a_silent_update_is_a_failure_and_no_picture() -> None:
    observation = FedSGD(leaky_chain()).double()(batch_of(2, 1).to(torch.float64))
    for value in observation.update.values():
        value[0] = 0
    found = RGAP()(observation)
    assert found.images[0].isnan().all()
    assert found.objective[0].isinf()
    assert found.objective[1] < 1e-9


def test_a_silent_update_names_no_label() -> None:
    batch = batch_of(2, 1).to(torch.float64)
    observation = FedSGD(leaky_chain(), threat_model=HIDDEN).double()(batch)
    for value in observation.update.values():
        value[0] = 0
    found = RGAP()(observation)
    assert found.images[0].isnan().all()
    assert found.labels is not None
    assert found.labels.tolist() == [[UNLABELED], batch.labels[1].tolist()]


def test_a_convolution_of_one_place_is_no_linear_layer() -> None:
    """Its kernel reaches into the padding, with weights that send no gradient."""

    def build() -> nn.Module:
        body = [nn.Conv2d(1, 16, 4, bias=False), nn.LeakyReLU(0.2), nn.Conv2d(16, 12, 3, padding=1, bias=False)]
        return nn.Sequential(*body, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(12, 10))

    victim = Victim(
        seeded(build, 0),
        architecture="one place",
        image_shape=(1, 4, 4),
        num_classes=10,
        initialization="default, seed 0",
    ).double()
    batch = batch_of(3, 1, side=4).to(torch.float64)
    batch = batch.model_copy(update={"images": batch.images[:, :, :1]})
    found = RGAP()(FedSGD(victim, threat_model=HIDDEN)(batch))
    assert scores(found, batch).min() > 99
    assert [layer.linear for layer in read_chain(victim).layers] == [False, False, True]
    ranks = rank_deficiency(victim, batch.images[0], batch.labels[0])
    assert [(each.unknowns, each.rank) for each in ranks] == [(16, 16), (16, 16), (12, 12)]


def test_more_than_it_serves_is_refused_in_words() -> None:
    with pytest.raises(RefusalError, match="set the data's batch_size to 1"):
        RGAP()(FedSGD(leaky_chain())(batch_of(1, 2)))
    averaging = FedAvg(leaky_chain(), steps=1, local_batch_size=1, rate=0.1)
    with pytest.raises(ThreatModelError, match=r"RGAP needs threat_model\.update to be 'gradient'"):
        RGAP()(averaging(batch_of(1, 1)))


CHAINS: dict[str, tuple[Callable[[], list[nn.Module]], str]] = {
    "relu": (lambda: [nn.Conv2d(3, 12, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10)], r"1 is ReLU\(\)"),
    "pooling": (lambda: [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 10)], r"0 is AvgPool2d"),
    "bias": (lambda: [nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 10)], r"0 is Conv2d\(3, 2"),
    "groups": (lambda: [nn.Conv2d(3, 3, 3, groups=3, bias=False), nn.Flatten(), nn.Linear(108, 10)], r"groups=3"),
    "slope": (
        lambda: [nn.Flatten(), nn.Linear(192, 9, bias=False), nn.LeakyReLU(0.0), nn.Linear(9, 10)],
        r"2 is Leaky",
    ),
    "first": (lambda: [nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(192, 10)], r"0 is LeakyReLU"),
    "head": (lambda: [nn.Flatten(), nn.Linear(192, 10, bias=False)], r"at the end; here it is Linear"),
    "end": (lambda: [nn.Flatten(), nn.Linear(192, 10), nn.LeakyReLU(0.2)], r"at the end; here it is LeakyReLU"),
    "normalization": (lambda: [nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10)], r"0 is BatchNorm2d"),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_no_chain_is_refused_by_name(name: str) -> None:
    build, words = CHAINS[name]
    facts: dict[str, Any] = {
        "architecture": "chain",
        "image_shape": (3, 8, 8),
        "num_classes": 10,
        "initialization": "-",
    }
    victim = Victim(nn.Sequential(*build()), **facts).eval()
    with pytest.raises(RefusalError, match=words) as refused:
        read_chain(victim)
    assert "\n" not in str(refused.value)


class Twice(nn.Module):
    """A net whose modules do not run in their order alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    def forward(self, images: Tensor) -> Tensor:
        return 2 * self.inside(images)  # type: ignore[no-any-return]


def test_what_computes_something_else_than_its_modules_is_refused() -> None:
    facts: dict[str, Any] = {
        "architecture": "twice",
        "image_shape": (3, 8, 8),
        "num_classes": 10,
        "initialization": "-",
    }
    with pytest.raises(RefusalError, match="something else than its modules in order"):
        read_chain(Victim(Twice(), **facts))
