"""The attacks on real CIFAR-10 images reach what the papers and the proofs say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fully_connected, small_victim
from references import matching as reference

from gibench.attacks import BiasAttack, dlg, idlg, inverting_gradients
from gibench.clients import FedSGD
from gibench.data import CIFAR10
from gibench.errors import RefusalError
from gibench.metrics import psnr
from gibench.types import Batch, Reconstruction
from gibench.victims import lenet, mlp


@pytest.fixture
def cifar(cifar10_root: Path) -> Any:
    """A function (updates, size) -> CIFAR-10 batch."""

    def draw(updates: int, size: int = 1) -> Batch:
        data = CIFAR10(cifar10_root, updates=updates, together=updates, batch_size=size)
        return next(iter(data.predict_dataloader()))

    return draw


def scores(found: Reconstruction, batch: Batch) -> torch.Tensor:
    return psnr(found.images.flatten(0, 1), batch.images.flatten(0, 1))


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 60.0), (torch.float64, 100.0)])
def test_bias_attack_is_exact_on_the_mlp(cifar: Any, dtype: torch.dtype, least: float) -> None:
    batch = cifar(4).to(dtype)
    found = BiasAttack()(FedSGD(mlp()).to(dtype)(batch))
    assert scores(found, batch).min() >= least
    assert found.objective.max() < 1e-5


def test_bias_attack_finds_images_that_have_a_row_of_their_own(cifar: Any) -> None:
    """At B = 2 on a wide ReLU layer some rows are switched on by one image only."""
    batch = cifar(4, 2).to(torch.float64)
    victim = mlp()
    with torch.no_grad():
        victim.network.fc1.bias.fill_(-0.3)  # few rows fire, so that they differ between the images
    found = BiasAttack()(FedSGD(victim).double()(batch))
    best = torch.stack([(found.images[:, :1] - batch.images).square().mean((2, 3, 4))]).amin()
    assert best < 1e-6


def test_bias_attack_refuses_a_convolutional_net(cifar: Any) -> None:
    with pytest.raises(RefusalError, match="fully connected"):
        BiasAttack()(FedSGD(lenet())(cifar(2)))


def test_idlg_is_bimodal_on_lenet(cifar: Any) -> None:
    """L-BFGS solves the first of these two images and diverges on the second, as most images do one or the other."""
    batch = cifar(2).to(torch.float64)
    found = idlg(steps=80)(FedSGD(lenet()).double()(batch))
    solved, lost = scores(found, batch)
    assert solved > 25
    assert lost < 8
    assert found.gradient_evaluations[1] < found.gradient_evaluations[0]
    assert torch.equal(found.labels, batch.labels)  # type: ignore[arg-type]


def test_ig_beats_the_floor_on_lenet(cifar: Any) -> None:
    batch = cifar(4)
    found = inverting_gradients(steps=1000, signed=False)(FedSGD(lenet())(batch))
    assert scores(found, batch).mean() > 15  # the mean image reaches 12.7


@pytest.mark.parametrize("name", ["cosine", "gaussian"])
def test_the_objective_is_what_the_slow_loop_computes(cifar: Any, name: str) -> None:
    """Value and derivative of the engine's objective against one image, plain autograd, in float64."""
    batch = cifar(3, 2).to(torch.float64)
    client = FedSGD(lenet()).double()
    observation = client(batch)
    attack = inverting_gradients(steps=1, tv=0.1) if name == "cosine" else dlg(steps=1)
    objective, start = attack.problem(observation, [(0, row) for row in range(3)])
    value, gradient = objective(start)
    for row in range(3):
        image = start["pixels"][row].clone().requires_grad_()
        labels = start["logits"][row].softmax(1) if "logits" in start else batch.labels[row]
        observed = [tensor[row] for tensor in observation.update.values()]
        simulated = reference.gradient(client.victim, image, labels, create_graph=True)
        if name == "cosine":
            expected = reference.cosine_distance(simulated, observed) + 0.1 * reference.total_variation(image)
        else:
            expected = reference.squared_distance(simulated, observed)
        torch.testing.assert_close(value[row], expected.detach(), rtol=1e-9, atol=1e-12)
        (slope,) = torch.autograd.grad(expected, image)
        torch.testing.assert_close(gradient["pixels"][row], slope, rtol=1e-9, atol=1e-14)


def test_small_victims_are_attacked_in_their_own_units() -> None:
    """The box is [0, 1] in pixels, whatever the victim's normalization."""
    from helpers import batch_of

    batch = batch_of(2, 1)
    for victim in (small_victim(), fully_connected()):
        found = inverting_gradients(steps=30, rate=0.5)(FedSGD(victim)(batch))
        assert found.images.min() >= 0
        assert found.images.max() <= 1
