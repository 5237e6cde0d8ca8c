"""The variational bottleneck against its formula, torch's distributions and plain autograd; the engine on top of it."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import batch_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gibench.attacks import BiasAttack, inverting_gradients
from gibench.clients import FedSGD
from gibench.diagnostics import probe_second_derivatives
from gibench.engine import Engine
from gibench.engine.gradient import LocalGradient, weights
from gibench.engine.verify import verify
from gibench.errors import ConfigurationError
from gibench.likelihoods import Cosine
from gibench.victims import (
    VariationalBottleneck,
    Victim,
    divergence,
    find_bottleneck,
    lenet,
    load_weights,
    precode_lenet,
    precode_mlp,
    save_weights,
)

each_victim = pytest.mark.parametrize("build", [precode_mlp, precode_lenet], ids=lambda build: build.__name__)
SMALL = (3, 8, 8)


def with_noise(victim: Victim, noise: Tensor) -> Callable[[Tensor], Tensor]:
    """The victim's forward with the noise (B, K) of one batch."""
    buffers = {**dict(victim.named_buffers()), "network.bottleneck.noise": noise}
    return lambda images: functional_call(victim, (dict(victim.named_parameters()), buffers), (images,))


# The bottleneck.


def test_the_code_is_the_mean_plus_the_deviation_times_the_noise() -> None:
    bottleneck, features = VariationalBottleneck(7, size=5).double(), torch.randn(4, 7, dtype=torch.float64)
    statistics = bottleneck.statistics(features)
    mean, deviation = statistics[:, :5], (1 + statistics[:, 5:].exp()).log()
    torch.testing.assert_close(bottleneck(features), bottleneck.decoder(mean))
    noise = torch.randn(4, 5, dtype=torch.float64)
    found = functional_call(bottleneck, {"noise": noise}, (features,))
    torch.testing.assert_close(found, bottleneck.decoder(mean + deviation * noise))


@each_victim
def test_the_noise_is_no_weight(build: Callable[..., Victim], tmp_path: Path) -> None:
    victim = build(seed=1)
    assert not [name for name in victim.state_dict() if "noise" in name]
    loaded = load_weights(build(), save_weights(victim, tmp_path / "victim.safetensors"))
    noise = loaded.double().get_buffer("network.bottleneck.noise")
    assert noise.shape == (1, 256)
    assert noise.dtype == torch.float64
    assert not noise.any()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.float()(images), victim(images))


@each_victim
def test_substituted_noise_reaches_each_sample(build: Callable[..., Victim]) -> None:
    victim, images, noise = build(initialization="default"), torch.rand(3, 3, 32, 32), torch.randn(3, 256)
    together = with_noise(victim, noise)(images)
    alone = [with_noise(victim, row[None])(image[None]) for row, image in zip(noise, images, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert (together != victim(images)).any(1).all()


@each_victim
def test_the_bottleneck_is_found_by_name(build: Callable[[], Victim]) -> None:
    victim = build()
    found = find_bottleneck(victim)
    assert found is not None
    name, bottleneck = found
    assert name == "network.bottleneck"
    assert bottleneck is victim.get_submodule(name)
    seen: list[Tensor] = []
    bottleneck.statistics.register_forward_hook(lambda *call: seen.append(call[2]))
    victim(torch.rand(2, 3, 32, 32))
    assert [statistics.shape for statistics in seen] == [(2, 512)]


def test_one_bottleneck_or_none() -> None:
    assert find_bottleneck(lenet()) is None
    with pytest.raises(ConfigurationError, match=r"2 variational bottlenecks \(0, 2\)"):
        find_bottleneck(nn.Sequential(VariationalBottleneck(3), nn.ReLU(), VariationalBottleneck(3)))


# The divergence.


@given(seed=st.integers(0, 999), batch=st.integers(1, 3), size=st.integers(1, 5), scale=st.sampled_from([0.1, 1, 9]))
def test_divergence_is_that_of_torch_distributions(seed: int, batch: int, size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    statistics = scale * torch.randn(batch, 2 * size, generator=generator, dtype=torch.float64)
    codes = Normal(statistics[:, :size], F.softplus(statistics[:, size:]))
    expected = kl_divergence(codes, Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(divergence(statistics), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("spread", [-600.0, -40.0, -15.001, -15.0, -14.999, 0.0, 19.0])  # -15 is where the way changes
def test_divergence_and_its_slope_of_one_code(spread: float) -> None:
    statistics = torch.tensor([[0.5, spread]], dtype=torch.float64, requires_grad=True)
    deviation = math.log1p(math.exp(spread))
    value = divergence(statistics)
    assert value.item() == pytest.approx((0.25 + deviation**2 - 1) / 2 - math.log(deviation), rel=1e-12)
    (slope,) = torch.autograd.grad(value, statistics)
    steepness = 1 / (1 + math.exp(-spread))
    expected = torch.tensor([[0.5, steepness * (deviation - 1 / deviation)]], dtype=torch.float64)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("spread", [-1e4, -200.0, 200.0, 1e4])
def test_divergence_is_finite_in_single_precision(spread: float) -> None:
    statistics = torch.tensor([[0.5, spread]], requires_grad=True)
    (slope,) = torch.autograd.grad(divergence(statistics), statistics, create_graph=True)
    assert slope[0].tolist() == pytest.approx([0.5, -1.0 if spread < 0 else spread - 1 / spread])
    (curvature,) = torch.autograd.grad(slope.sum(), statistics)
    assert curvature[0].tolist() == pytest.approx([1.0, 0.0 if spread < 0 else 1 + spread**-2])


# Updates of clients, and attacks on them.


def test_updates_with_noise_of_their_own_are_those_of_plain_autograd() -> None:
    """And so are the derivatives of their length in images and noise, the divergence in the loss."""
    victim = precode_lenet(image_shape=SMALL, initialization="default").double()
    images, noise = (torch.rand(2, 3, *shape, dtype=torch.float64, requires_grad=True) for shape in (SMALL, (256,)))
    labels, parameters = torch.tensor([[0, 1, 2], [3, 4, 5]]), weights(victim)

    def loss(parameters: dict[str, Tensor], images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        seen: list[Tensor] = []
        bottleneck = victim.get_submodule("network.bottleneck.statistics")
        handle = bottleneck.register_forward_hook(lambda *call: seen.append(call[2]))
        buffers = {**dict(victim.named_buffers()), "network.bottleneck.noise": noise}
        logits = functional_call(victim, (parameters, buffers), (images,))
        handle.remove()
        return F.cross_entropy(logits, labels) + 1e-3 / math.log(2) * divergence(seen[0])

    updates = vmap(grad(loss), in_dims=(None, 0, 0, 0))(parameters, images, labels, noise)
    lengths = sum((value.square().flatten(1).sum(1) for value in updates.values()), torch.zeros(2))
    found = torch.autograd.grad(lengths.sum(), [images, noise])
    for u in range(2):
        leaves = [images[u].detach().requires_grad_(), noise[u].detach().requires_grad_()]
        value = loss(parameters, leaves[0], labels[u], leaves[1])
        plain = torch.autograd.grad(value, list(parameters.values()), create_graph=True)
        for name, gradient in zip(parameters, plain, strict=True):
            torch.testing.assert_close(updates[name][u], gradient, rtol=1e-9, atol=1e-12)
        length = sum((gradient.square().sum() for gradient in plain), torch.zeros(()))
        for whole, part in zip(found, torch.autograd.grad(length, leaves), strict=True):
            assert part.abs().max() > 0
            torch.testing.assert_close(whole[u], part, rtol=1e-9, atol=1e-12)


@each_victim
@pytest.mark.parametrize("initialization", ["uniform", "default"])
def test_second_derivatives_exist(build: Callable[..., Victim], initialization: str) -> None:
    probe_second_derivatives(build(initialization=initialization), (3, 32, 32), 10)


@each_victim
@pytest.mark.parametrize("backend", ["rules", "gram"])
def test_the_faster_back_ends_know_the_bottleneck(build: Callable[..., Victim], backend: str) -> None:
    """Its linear layers have rules; a constant noise makes no difference."""
    victim = build(image_shape=SMALL)
    verify(backend, LocalGradient(victim), Cosine(), 2)
    bottleneck = victim.get_submodule("network.bottleneck")
    bottleneck.register_buffer("noise", torch.randn(1, 256), persistent=False)
    verify(backend, LocalGradient(victim), Cosine(), 2)


@pytest.mark.parametrize("backend", ["auto", "rules"])
def test_inverting_gradients_matches_the_update(backend: str) -> None:
    observation = FedSGD(precode_lenet(image_shape=SMALL))(batch_of(2, 1))
    attack = inverting_gradients(steps=200, tv=0, engine=Engine(backend=backend))  # type: ignore[arg-type]
    start = inverting_gradients(steps=1, tv=0)(observation).objective
    assert (attack(observation).objective < start / 2).all()


def test_the_first_layer_of_the_perceptron_leaks_the_image() -> None:
    batch = batch_of(2, 1)
    found = BiasAttack()(FedSGD(precode_mlp(image_shape=SMALL))(batch)).images
    torch.testing.assert_close(found, batch.images, rtol=0, atol=1e-4)
