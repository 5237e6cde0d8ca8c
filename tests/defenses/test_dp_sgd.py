"""DP-SGD against plain autograd, one example after the other, and its epsilon against the formula without sampling."""

import math
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim
from references import matching
from torch import Tensor

from gibench.attacks import GradientMatching
from gibench.clients import FedAvg, FedSGD
from gibench.defenses import DPSGD, Density, Private, dp_sgd
from gibench.errors import ConfigurationError
from gibench.labels import Given
from gibench.likelihoods import Cosine, Gaussian
from gibench.search import Adam
from gibench.types import Batch, Observation, Simulate, Update
from gibench.victims import Victim, lenet

CLIP = 3.9
"""Between the norms of the examples' gradients, so that some are clipped and some are not."""


def exact_batch(updates: int, size: int) -> Batch:
    return batch_of(updates, size).to(torch.float64)


def victim() -> Victim:
    return small_victim().double()


def clipped(victim: Victim, images: Tensor, labels: Tensor, clip: float) -> tuple[list[Tensor], list[float]]:
    """The clipped mean of one batch, with a graph, and the norms of its examples."""
    total, norms = [torch.zeros_like(weight) for weight in victim.parameters()], []
    for image, label in zip(images, labels, strict=True):
        gradient = matching.gradient(victim, image[None], label[None], create_graph=True)
        norm = torch.cat([part.flatten() for part in gradient]).norm()
        factor = 1 if norm <= clip else clip / norm
        total = [old + factor * new / len(images) for old, new in zip(total, gradient, strict=True)]
        norms.append(norm.item())
    return total, norms


def observed(defense: DPSGD, batch: Batch) -> Observation:
    return FedSGD(victim(), defense=defense)(batch)


def test_the_update_is_the_mean_of_the_clipped_gradients() -> None:
    batch, model = exact_batch(2, 4), victim()
    update = observed(DPSGD(clip=CLIP, noise_multiplier=0), batch).update
    lengths = []
    for u in range(2):
        expected, norms = clipped(model, batch.images[u], batch.labels[u], CLIP)
        lengths += norms
        for (name, _), value in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(update[name][u], value.detach(), rtol=1e-10, atol=1e-12)
    assert min(lengths) < CLIP < max(lengths)


def test_a_high_clip_changes_nothing() -> None:
    batch = exact_batch(2, 3)
    for name, value in FedSGD(victim())(batch).update.items():
        torch.testing.assert_close(observed(DPSGD(clip=1e6, noise_multiplier=0), batch).update[name], value)


def test_examples_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, defense = exact_batch(2, 5), DPSGD(clip=CLIP, noise_multiplier=0.5)
    together = observed(defense, batch).update
    sizes: list[int] = []

    def counted(self: dp_sgd.ClippedGradient, images: Tensor, labels: Tensor) -> Update:
        sizes.append(images.shape[1])
        return original(self, images, labels)

    original = dp_sgd.ClippedGradient.__call__
    monkeypatch.setattr(dp_sgd.ClippedGradient, "__call__", counted)
    monkeypatch.setattr(dp_sgd, "_AT_ONCE", 4)  # two examples of each of the two clients
    for name, value in observed(defense, batch).update.items():
        torch.testing.assert_close(value, together[name])
    assert sizes == [2, 2, 1]


def test_the_noise_has_the_standard_deviation_of_the_formula() -> None:
    """Over ten thousand entries the deviation is within 3%; each client has its own noise."""
    batch, multiplier = batch_of(1, 3), 2.0
    model = small_victim(side=32)
    private = Private(
        torch.rand(2, 3, 3, 32, 32),
        batch.labels.expand(2, 3),
        (1, 2),
        model,
        lambda images, _: {name: images.new_zeros(len(images), *w.shape) for name, w in model.named_parameters()},
    )
    update = DPSGD(clip=CLIP, noise_multiplier=multiplier).sample(private).update
    first, second = (torch.cat([value[u].flatten() for value in update.values()]) for u in (0, 1))
    assert len(first) > 10_000
    for noise in (first, second):
        assert float(noise.std()) == pytest.approx(multiplier * CLIP / 3, rel=0.03)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.04


def test_a_client_draws_by_its_own_seed_alone() -> None:
    defense = DPSGD(clip=CLIP, noise_multiplier=1)
    together, alone = observed(defense, batch_of(2, 3).to(torch.float64)), observed(defense, exact_batch(1, 3))
    for name, value in alone.update.items():
        torch.testing.assert_close(together.update[name][:1], value)


def test_the_attacker_clips_what_it_simulates() -> None:
    """The value of the likelihood and its derivative are those of plain autograd, for soft labels too."""
    batch, model, multiplier, clip = exact_batch(2, 4), victim(), 0.3, 3.5
    observation = observed(DPSGD(clip=clip, noise_multiplier=multiplier), batch)
    hypothesis = Density().hypothesis(observation)
    images = (0.5 + batch.images / 4).requires_grad_()
    labels = torch.nn.functional.one_hot(batch.labels, 10).double()
    found = hypothesis.likelihood(hypothesis.observation.simulate(images, labels), observation.update)
    (slope,) = torch.autograd.grad(found.sum(), images)
    norms = []
    for u in range(2):
        leaf = images[u].detach().requires_grad_()
        expected, each = clipped(model, leaf, batch.labels[u], clip)
        differences = [
            simulated - observation.update[name][u]
            for (name, _), simulated in zip(model.named_parameters(), expected, strict=True)
        ]
        value = sum((each.square().sum() for each in differences), torch.zeros(())) / 2 / (multiplier * clip / 4) ** 2
        torch.testing.assert_close(found[u], value, rtol=1e-10, atol=0)
        torch.testing.assert_close(slope[u], torch.autograd.grad(value, leaf)[0], rtol=1e-8, atol=1e-10)
        norms += each
    assert min(norms) < clip < max(norms)


def test_without_noise_the_distance_of_the_attack_stays() -> None:
    observation = observed(DPSGD(clip=CLIP, noise_multiplier=0), exact_batch(1, 2))
    hypothesis = Density(distance=Cosine()).hypothesis(observation)
    assert isinstance(hypothesis.likelihood, Cosine)
    batch = exact_batch(1, 2)
    at_the_truth = hypothesis.likelihood(
        hypothesis.observation.simulate(batch.images, batch.labels), hypothesis.observation.update
    )
    assert float(at_the_truth) == pytest.approx(0, abs=1e-12)


def test_an_example_without_gradient_has_a_derivative() -> None:
    """The norm of a zero gradient has none of its own, which would be NaN."""
    scale = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
    simulate: Simulate = lambda images, _: {"w": images.flatten(1)}  # noqa: E731
    update = dp_sgd.ClippedGradient(simulate, clip=0.1)(scale.reshape(1, 2, 1, 1, 1), torch.zeros(1, 2))
    (slope,) = torch.autograd.grad(update["w"].sum(), scale)
    assert slope.tolist() == pytest.approx([0.5, 0])


def test_gradient_matching_searches_under_it() -> None:
    batch = batch_of(2, 2)
    observation = FedSGD(small_victim(), defense=DPSGD(clip=0.3, noise_multiplier=1e-3))(batch)
    attack = GradientMatching(likelihood=Density(), search=Adam(steps=60, rate=0.05), labels=Given())
    start = GradientMatching(likelihood=Density(), search=Adam(steps=1, rate=0.05), labels=Given())
    # An attacker who does not clip finds no image whose gradient is so short.
    naive = GradientMatching(likelihood=Gaussian(sigma=0.15e-3), search=Adam(steps=60, rate=0.05), labels=Given())
    found = attack(observation).objective
    assert (found < start(observation).objective / 5).all()
    assert (found < naive(observation).objective / 2).all()


def test_memory_grows_with_the_examples() -> None:
    observation = observed(DPSGD(clip=CLIP, noise_multiplier=1), exact_batch(1, 4))
    parameters = sum(parameter.numel() for parameter in observation.victim.parameters())
    more = Density().hypothesis(observation).observation.bytes_per_update - observation.bytes_per_update
    assert more == 3 * 8 * 8 * parameters


# What it refuses.


@pytest.mark.parametrize(
    "settings",
    [
        {"clip": 0, "noise_multiplier": 1},
        {"clip": -1, "noise_multiplier": 1},
        {"clip": math.nan, "noise_multiplier": 1},
        {"clip": 1, "noise_multiplier": -1},
        {"clip": 1, "noise_multiplier": 1, "steps": 10},
        {"clip": 1, "noise_multiplier": 1, "sample_rate": 0.1},
        {"clip": 1, "noise_multiplier": 1, "steps": 0, "sample_rate": 0.1},
        {"clip": 1, "noise_multiplier": 1, "steps": 10, "sample_rate": 1.5},
        {"clip": 1, "noise_multiplier": 1, "steps": 10, "sample_rate": 0.1, "delta": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"got|set both"):
        DPSGD(**settings)


def test_without_noise_there_is_no_epsilon() -> None:
    with pytest.raises(ConfigurationError, match="no epsilon is finite"):
        DPSGD(clip=1, noise_multiplier=0, steps=10, sample_rate=0.1)


def test_without_opacus_epsilon_is_refused_and_the_rest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    assert DPSGD(clip=1, noise_multiplier=1).epsilon is None
    with pytest.raises(ConfigurationError, match=r"install gibench\[privacy\]"):
        DPSGD(clip=1, noise_multiplier=1, steps=10, sample_rate=0.1)


def test_local_steps_and_batch_norm_are_refused() -> None:
    defense = DPSGD(clip=1, noise_multiplier=1)
    with pytest.raises(ConfigurationError, match="use FedSGD"):
        FedAvg(lenet(), steps=2, defense=defense)
    with pytest.raises(ConfigurationError, match="BatchNorm"):
        defense.check(small_victim(batch_norm=True), "gradient")


# Epsilon.

needs_opacus = pytest.mark.skipif(find_spec("opacus") is None, reason="needs gibench[privacy]")


@needs_opacus
@pytest.mark.parametrize(("multiplier", "steps", "delta"), [(1.0, 1, 1e-5), (4.0, 100, 1e-5), (2.0, 3, 1e-3)])
def test_epsilon_without_sampling_is_that_of_the_gaussian_mechanism(
    multiplier: float, steps: int, delta: float
) -> None:
    """Rényi divergence alpha T / (2 z^2) (Mironov 2017), turned into epsilon after Balle et al. 2020, theorem 21."""
    expected = min(
        alpha * steps / (2 * multiplier**2)
        - (math.log(delta) + math.log(alpha)) / (alpha - 1)
        + math.log((alpha - 1) / alpha)
        for alpha in (1 + tenth / 10 for tenth in range(1, 621))
    )
    found = DPSGD(clip=1, noise_multiplier=multiplier, steps=steps, sample_rate=1, delta=delta).epsilon
    assert found == pytest.approx(expected, rel=2e-3)


@needs_opacus
def test_sampling_amplifies_and_epsilon_is_a_setting() -> None:
    defense = DPSGD(clip=2, noise_multiplier=1.1, steps=60 * 240, sample_rate=256 / 60_000)
    assert defense.epsilon == pytest.approx(2.6, abs=0.4)  # about what tutorials quote for 60 epochs of MNIST
    assert defense.settings()["epsilon"] == defense.epsilon
    more = DPSGD(clip=2, noise_multiplier=1.1, steps=60 * 240, sample_rate=0.05).epsilon
    assert more is not None
    assert more > 10 * defense.epsilon
