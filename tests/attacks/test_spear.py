"""SPEAR: whole batches exactly, with a certificate, and nothing where there is none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batch_of, fully_connected, small_victim
from hypothesis import given
from hypothesis import strategies as st
from references import spear as reference
from torch import Tensor, nn

from gibench.attacks import SPEAR
from gibench.attacks.spear import agreement, unmix
from gibench.clients import FedAvg, FedSGD
from gibench.data import CIFAR10
from gibench.defenses import GaussianNoise
from gibench.errors import ConfigurationError, RefusalError, ThreatModelError
from gibench.matching import match, reorder
from gibench.metrics import psnr
from gibench.search.low_rank import factor, null_vectors, polish, samples
from gibench.types import Batch, Observation, ThreatModel
from gibench.victims import Victim, mlp

HIDDEN = ThreatModel(victim="initial", batch_norm="absent", labels="none", batch_size="unknown")
WEIGHT, BIAS = "network.fc1.weight", "network.fc1.bias"


@pytest.fixture
def one_class(cifar10_root: Path) -> Any:
    """A function (updates, size) -> CIFAR-10 batches of one class, the hardest labels."""

    def draw(updates: int, size: int) -> Batch:
        data = CIFAR10(cifar10_root, updates=updates, together=max(2, updates), batch_size=size, sampler="one_class")
        return next(iter(data.predict_dataloader()))

    return draw


def worst(images: Tensor, batch: Batch) -> float:
    """The smallest PSNR of all images after matching."""
    matched = reorder(images, match(images, batch.images))
    return float(psnr(matched.flatten(0, 1), batch.images.flatten(0, 1)).min())


def true_deltas(victim: Victim, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (B, n) and deltas (m, B) of one batch, by autograd on the first layer's output."""
    inputs = victim.normalize(images).flatten(1)
    hidden = victim.network[1](inputs).detach().requires_grad_()
    loss = nn.functional.cross_entropy(victim.network[2:](hidden), labels)
    return inputs, torch.autograd.grad(loss, hidden)[0].mT


@pytest.mark.parametrize(
    ("size", "updates", "width"), [(1, 4, 256), (2, 4, 256), (4, 4, 256), (8, 2, 512), (12, 1, 1024)]
)
@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 99.9), (torch.float32, 90.0)])
def test_batches_of_one_class_are_exact(
    one_class: Any, size: int, updates: int, width: int, dtype: torch.dtype, least: float
) -> None:
    batch = one_class(updates, size).to(dtype)
    found = SPEAR()(FedSGD(mlp(width=width)).to(dtype)(batch))
    assert found.images.dtype == dtype
    assert worst(found.images, batch) > least
    assert (found.objective < torch.finfo(dtype).eps ** 0.75).all()


@pytest.mark.slow
@pytest.mark.parametrize("size", [8, 16])
def test_larger_batches_are_exact(one_class: Any, size: int) -> None:
    batch = one_class(4, size).to(torch.float64)
    assert worst(SPEAR()(FedSGD(mlp()).double()(batch)).images, batch) > 99.9


def test_the_answer_is_that_of_the_true_patterns(one_class: Any) -> None:
    """The reference is told the patterns, factors the weights alone and scales by least squares."""
    batch = one_class(1, 3).to(torch.float64)
    client = FedSGD(mlp(width=256)).double()
    observation = client(batch)
    _, deltas = true_deltas(client.victim, batch.images[0], batch.labels[0])
    gradients = (observation.update[name][0].numpy() for name in (WEIGHT, BIAS))
    inputs = torch.from_numpy(reference.with_patterns(*gradients, (deltas != 0).numpy()))
    told = client.victim.denormalize(inputs.unflatten(1, (3, 32, 32)))[None]
    found = SPEAR()(observation).images
    torch.testing.assert_close(reorder(found, match(found, told)), told, rtol=0, atol=1e-9)


@given(size=st.integers(2, 9), seed=st.integers(0, 10**6))
def test_null_vectors_are_those_of_the_svd(size: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, size - 1, size, generator=source, dtype=torch.float64)
    found = null_vectors(rows, torch.randn(size, generator=source, dtype=torch.float64))
    for vector, equations in zip(found, rows, strict=True):
        assert abs(vector @ torch.from_numpy(reference.null_vector(equations.numpy()))) == pytest.approx(1, abs=1e-6)


def test_dependent_rows_have_no_null_vector() -> None:
    rows = torch.ones(2, 2, 3, dtype=torch.float64)
    assert not null_vectors(rows, torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)).isfinite().any()


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_sketch_shows_the_rank_and_the_factors_multiply_to_the_matrix(rank: int) -> None:
    source = torch.Generator().manual_seed(rank)
    matrix = torch.randn(40, rank, generator=source).double() @ torch.randn(rank, 90, generator=source).double()
    for size in (rank, 8):
        left, right, spectrum = found = factor(matrix, size, source)
        assert found.rank(1e-10) == rank
        torch.testing.assert_close(left @ right, matrix)
        torch.testing.assert_close(spectrum[:rank], torch.linalg.svdvals(matrix)[:rank])
    assert factor(matrix + 1e-3 * torch.randn(40, 90, generator=source), rank, source).rank(1e-10) == rank + 6


def test_the_certificate_is_that_of_the_loops() -> None:
    """On true inputs it is 1; on the inputs that one wrong direction makes, it is the reference's smaller number."""
    client = FedSGD(fully_connected()).double()
    batch = batch_of(1, 3).to(torch.float64)
    layer = client.victim.network[1]
    inputs, deltas = true_deltas(client.victim, batch.images[0], batch.labels[0])
    arrays = layer.weight.numpy(), layer.bias.numpy()
    assert agreement(inputs, deltas != 0, layer.weight, layer.bias) == 1
    assert reference.agreement(inputs.numpy(), deltas.numpy(), *arrays) == 1

    left, right, _ = factor(torch.cat([deltas @ inputs, deltas.sum(1, keepdim=True)], 1), 3, torch.Generator())
    mixing = right[:3] @ torch.cat([inputs, torch.ones(3, 1)], 1).mT  # left @ q is delta where q solves mixing^T
    true = torch.linalg.inv(mixing.mT)
    torch.testing.assert_close(unmix(true.mT * torch.tensor([[2.0], [-3.0], [0.1]]), right[:3]), inputs)
    wrong = true.clone()
    wrong[:, 0] += 0.5 * true[:, 1]
    mixture, mixed = unmix(wrong.mT, right[:3]), left[:, :3] @ wrong
    mixed[mixed.abs() < 1e-12] = 0
    found = agreement(mixture, mixed != 0, layer.weight, layer.bias)
    assert found == reference.agreement(mixture.numpy(), mixed.numpy(), *arrays)
    assert found < 0.9


def test_a_direction_of_no_image_is_rejected_by_leverage() -> None:
    """Orthogonal to all rows at which two images are off, a third of the rows, and to one further row."""
    source = torch.Generator().manual_seed(0)
    deltas = torch.randn(120, 4, generator=source, dtype=torch.float64)
    deltas[:60, 0] = deltas[20:80, 1] = 0
    rows = deltas / deltas.norm(dim=1, keepdim=True)
    row = rows[100]
    false = torch.tensor([row[1], -row[0], 0, 0]) / torch.hypot(row[0], row[1])
    assert ((rows @ false).abs() < 1e-12).sum() == 41
    assert polish(false, rows, 1e-12) is None
    true = torch.tensor([1.0, 1e-12, 0, 0], dtype=torch.float64)
    found = polish(true, rows, 1e-12)
    assert found is not None
    assert found[1] == 60
    assert abs(found[0][0]) == pytest.approx(1)


def permuted(update: dict[str, Tensor]) -> None:
    """The neurons change places: the images are still there, their certificate is not."""
    for name in (WEIGHT, BIAS):
        update[name][1] = update[name][1].roll(1, 0)


def dense(update: dict[str, Tensor]) -> None:
    """A gradient of rank B without zeros."""
    for name, shape in ((WEIGHT, (4, 3072)), (BIAS, (4,))):
        source = torch.Generator().manual_seed(5)
        left = torch.randn(256, 4, generator=source, dtype=torch.float64)
        update[name][1] = left @ torch.randn(shape, generator=source, dtype=torch.float64)


def noisy(update: dict[str, Tensor]) -> None:
    update[WEIGHT][1] += 1e-6 * torch.randn(256, 3072, generator=torch.Generator().manual_seed(0))


def one_entry(update: dict[str, Tensor]) -> None:
    update[BIAS][1, 7] += 0.1


def silent(update: dict[str, Tensor]) -> None:
    update[WEIGHT][1] = update[BIAS][1] = 0


def another_bias(update: dict[str, Tensor]) -> None:
    """The bias gradient of the next client: the scales, and so the images, would be wrong."""
    update[BIAS][1] = update[BIAS][2]


@pytest.mark.parametrize("spoil", [permuted, dense, noisy, one_entry, silent, another_bias])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_spoiled_update_fails_and_no_other_does(
    one_class: Any, spoil: Callable[[dict[str, Tensor]], None], dtype: torch.dtype
) -> None:
    batch = one_class(3, 4).to(dtype)
    observation = FedSGD(mlp(width=256)).to(dtype)(batch)
    whole = SPEAR(max_samples=5000)(observation)
    spoil(observation.update)
    found = SPEAR(max_samples=5000)(observation)
    assert found.images[1].isnan().all()
    assert found.objective[1].isinf()
    assert [reason is None for reason in found.refused or ()] == [True, False, True]
    assert torch.equal(found.images[[0, 2]], whole.images[[0, 2]])
    assert torch.equal(found.objective[[0, 2]], whole.objective[[0, 2]])
    assert whole.images.isfinite().all()


def test_the_end_of_the_budget_is_a_failure(one_class: Any) -> None:
    found = SPEAR(max_samples=2)(FedSGD(mlp(width=256)).double()(one_class(1, 4).to(torch.float64)))
    assert found.images.isnan().all()
    assert found.objective.isinf().all()
    assert found.refused == ("no answer has the certificate within max_samples = 2 samples.",)


def observe(batch: Batch, threat_model: ThreatModel | None = None) -> Observation:
    return FedSGD(fully_connected(), threat_model=threat_model).double()(batch.to(torch.float64))


def test_equal_images_fail_and_dependent_ones_do_not() -> None:
    """The rank of [X | 1] counts: an image and a dark mixture of the others are dependent, and yet told apart."""
    client = FedSGD(mlp(width=256, image_shape=(3, 8, 8), mean=(0.0,), std=(1.0,))).double()
    batch = batch_of(1, 3).to(torch.float64)
    batch.images[0, 2] = 0.4 * batch.images[0, 0] + 0.3 * batch.images[0, 1]
    assert torch.linalg.matrix_rank(batch.images[0].flatten(1)) == 2
    assert worst(SPEAR()(client(batch)).images, batch) > 99.9
    batch.images[0, 2] = batch.images[0, 1]
    batch.labels[0, 2] = batch.labels[0, 1]
    equal = SPEAR()(client(batch))
    assert equal.images.isnan().all()
    assert equal.refused == ("the first layer's gradient shows rank 2, not that of 3 images.",)


def test_images_that_no_neuron_tells_apart_end_soon() -> None:
    """An image and its darker copy switch the same neurons; there are few different samples, and so few are drawn."""
    rows = torch.eye(2, dtype=torch.float64).repeat(30, 1)
    assert sum(1 for _ in samples(rows, torch.Generator(), tolerance=1e-12, budget=10**9)) == 5  # 1200 by 256
    batch = batch_of(1, 2)
    batch.images[0, 1] = 0.5 * batch.images[0, 0]
    assert SPEAR(max_samples=10**12)(observe(batch)).images.isnan().all()


def test_a_hidden_batch_size_is_told_by_the_rank() -> None:
    batch = batch_of(3, 3)
    batch.images[1, 1:] = batch.images[1, 0]  # rank 1
    batch.labels[1] = batch.labels[1, 0]
    found = SPEAR()(observe(batch, HIDDEN))
    assert found.images.shape == batch.images.shape
    for row in (0, 2):
        images, private = found.images[row : row + 1], batch.images[row : row + 1].double()
        torch.testing.assert_close(reorder(images, match(images, private)), private, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.images[1, 0], batch.images[1, 0].double())
    assert found.images[1, 1:].isnan().all()


def test_a_hidden_batch_size_under_noise_is_refused() -> None:
    noise = HIDDEN.model_copy(update={"defense": "known"})
    client = FedSGD(fully_connected(), defense=GaussianNoise(sigma=0.1), threat_model=noise)
    with pytest.raises(RefusalError, match="no batch of at most 32 images in the rank"):
        SPEAR()(client(batch_of(1, 2)))


def layers(*modules: nn.Module) -> Victim:
    facts: dict[str, Any] = {"architecture": "made", "image_shape": (3, 8, 8), "num_classes": 10}
    return Victim(nn.Sequential(nn.Flatten(), *modules), initialization="default", **facts)


@pytest.mark.parametrize(
    ("victim", "size", "words"),
    [
        (small_victim(), 1, "SPEAR needs a first layer that is fully connected with bias .* here it is Conv2d"),
        (layers(nn.Linear(192, 16, bias=False), nn.ReLU(), nn.Linear(16, 10)), 1, "fully connected with bias"),
        (layers(nn.Linear(192, 16), nn.Sigmoid(), nn.Linear(16, 10)), 1, "'network.1'; here it is Sigmoid"),
        (layers(nn.Linear(192, 10)), 1, "'network.1'; here it is nothing"),
        (layers(nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 10)), 5, r"than the first layer has rows \(4\) .* here 5"),
    ],
)
def test_victims_that_cannot_be_served_are_refused(victim: Victim, size: int, words: str) -> None:
    with pytest.raises(RefusalError, match=words) as error:
        SPEAR()(FedSGD(victim)(batch_of(1, size)))
    assert "\n" not in str(error.value)


def test_several_local_steps_are_no_sum_of_products() -> None:
    with pytest.raises(ThreatModelError, match=r"SPEAR needs threat_model.update to be 'gradient'; it is 'fedavg'"):
        SPEAR()(FedAvg(fully_connected(), steps=2, local_batch_size=1, rate=0.1)(batch_of(1, 2)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_samples": 0}, "max_samples is 0"),
        ({"largest_batch": 0}, "largest_batch 0"),
        ({"tolerance": 0.0}, "tolerance is 0.0"),
        ({"agreement": 0.5}, "agreement is 0.5"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        SPEAR(**settings)


def test_a_tolerance_above_the_noise_reads_through_it(one_class: Any) -> None:
    """Rounded to float32, the rank is full at float64's tolerance; at the rounding's, it is B."""
    batch = one_class(1, 2).to(torch.float64)
    observation = FedSGD(mlp(width=256)).double()(batch)
    rounded = {name: tensor.float().double() for name, tensor in observation.update.items()}
    observation = observation.model_copy(update={"update": rounded})
    assert SPEAR(max_samples=2000)(observation).images.isnan().all()
    assert worst(SPEAR(tolerance=1e-5)(observation).images, batch) > 90
    assert SPEAR(tolerance=1e-5)(observation).objective.isfinite().all()
