"""Feature matching: the term is the distance of what the last layer sees, as a hook shows it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batch_of, fully_connected, small_victim
from references import partial as reference
from torch import Tensor, nn

from gibench.clients import FedSGD
from gibench.data import CIFAR10
from gibench.errors import ConfigurationError, RefusalError
from gibench.likelihoods import Cosine, Features, Flat, Gaussian, Partial
from gibench.types import Batch, Observation
from gibench.victims import Victim, lenet, seeded


def term(observation: Observation, images: Tensor, labels: Tensor) -> Tensor:
    simulated = observation.simulate(images, labels)
    assert Features(Cosine(), weight=0.0)(simulated, observation.update).equal(Cosine()(simulated, observation.update))
    whole = Features(Cosine(), weight=0.1)(simulated, observation.update)
    return (whole - Cosine()(simulated, observation.update)) / 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_the_distance_of_features_of_real_images(cifar10_root: Path, dtype: torch.dtype) -> None:
    """Guesses are other real images, with the labels of those that are attacked; and the images themselves."""
    data = CIFAR10(cifar10_root, updates=3, together=3, batch_size=1)
    batch: Batch = next(iter(data.predict_dataloader())).to(dtype)
    victim = lenet().to(dtype)
    observation = FedSGD(victim).to(dtype)(batch)
    truth, guess = (
        reference.last_inputs(victim, images.flatten(0, 1)) for images in (batch.images, batch.images.flip(0))
    )
    expected = (guess - truth).square().mean(1)
    assert expected[[0, 2]].min() > 1e-4
    found = term(observation, batch.images.flip(0), batch.labels)
    close = {} if dtype == torch.float64 else {"rtol": 1e-2, "atol": 1e-4}
    torch.testing.assert_close(found, expected, **close)  # type: ignore[call-overload]
    torch.testing.assert_close(
        Features(Cosine())(observation.update, observation.update), torch.zeros(3, dtype=dtype), rtol=0, atol=1e-6
    )


def test_its_derivative_is_that_of_the_features() -> None:
    batch = batch_of(2, 1).to(torch.float64)
    victim = small_victim().double()
    observation = FedSGD(victim).double()(batch)
    images = batch_of(2, 1, seed=1).images.double().requires_grad_()
    seen, truth = (reference.last_inputs(victim, each.flatten(0, 1)) for each in (images, batch.images))
    (expected,) = torch.autograd.grad((seen - truth).square().mean(1).sum(), images)
    (found,) = torch.autograd.grad(term(observation, images, batch.labels).sum(), images)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_batches_compare_means_of_classes_and_agree_at_the_truth() -> None:
    """Against the same means, from features and probabilities, one update and one class after the other."""
    batch, other = batch_of(3, 4).to(torch.float64), batch_of(3, 4, seed=1).to(torch.float64)
    victim = small_victim().double()
    observation = FedSGD(victim).double()(batch)
    assert term(observation, batch.images, batch.labels).abs().max() < 1e-12

    def means(images: Tensor, labels: Tensor) -> list[Tensor]:
        deltas = victim(images).softmax(1) - nn.functional.one_hot(labels, 10)
        seen = reference.last_inputs(victim, images)
        return [sum(d * h for d, h in zip(deltas[:, c], seen, strict=True)) / deltas[:, c].sum() for c in range(10)]  # type: ignore[misc]

    for row, value in enumerate(term(observation, other.images, batch.labels)):
        labels = batch.labels[row]
        classes = labels.unique().tolist()
        own, theirs = means(other.images[row], labels), means(batch.images[row], labels)
        expected = torch.stack([(own[c] - theirs[c]).square().mean() for c in classes]).mean()
        torch.testing.assert_close(value, expected.detach())


def test_a_guess_without_a_mean_is_finite_and_bad_and_classes_without_one_say_nothing() -> None:
    observed = {"w": torch.tensor([[[-4.0, -2.0], [3.0, 1.0]]]), "b": torch.tensor([[-2.0, 1.0]])}
    for bias in (0.0, 5.0, -1e-12):
        weight = torch.ones(1, 2, 2, requires_grad=True)
        slope = torch.full((1, 2), bias, requires_grad=True)
        value = Features(Flat(), weight=1.0)({"w": weight, "b": slope}, observed)
        assert value > 1e6
        assert all(each.isfinite().all() for each in torch.autograd.grad(value.sum(), [weight, slope]))
    positive = {"w": observed["w"], "b": observed["b"].abs()}
    assert Features(Gaussian(), weight=1.0)(positive, positive) == 0
    second = {"w": observed["w"] + torch.tensor([[[0.0, 0.0], [9.0, 9.0]]]), "b": observed["b"]}
    assert Features(Flat(), weight=1.0)(second, observed) == 0


def without_bias() -> Victim:
    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Sigmoid(), nn.Linear(4, 10, bias=False))

    return Victim(
        seeded(build, 0), architecture="no bias", image_shape=(3, 8, 8), num_classes=10, initialization="default"
    )


def convolutional() -> Victim:
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())

    return Victim(
        seeded(build, 0), architecture="no linear", image_shape=(3, 8, 8), num_classes=10, initialization="default"
    )


@pytest.mark.parametrize("build", [without_bias, convolutional])
def test_a_head_that_tells_nothing_is_refused(build: Any) -> None:
    observation = FedSGD(build())(batch_of(1, 1))
    with pytest.raises(RefusalError, match="linear and has a bias; this victim has none") as error:
        Features(Cosine()).hypothesis(observation)
    assert "\n" not in str(error.value)


def test_it_is_a_plain_distance_of_plain_distances() -> None:
    observation = FedSGD(fully_connected())(batch_of(1, 1))
    for likelihood in (Features(Cosine()), Features(Partial(Cosine(), top=3))):
        assert likelihood.as_distance(observation) is likelihood
    with pytest.raises(ConfigurationError, match="no parameter 'fc9'"):
        Features(Partial(Cosine(), tensors=["fc9"])).hypothesis(observation)
    for weight in (-1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="the weight of the features is"):
            Features(Cosine(), weight=weight)
