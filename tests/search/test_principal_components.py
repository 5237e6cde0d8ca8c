"""Images as combinations of the principal components of others, against numpy's singular value decomposition."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SmallData, batch_of, small_victim
from numpy.typing import NDArray

from gibench.attacks import GradientMatching
from gibench.clients import FedSGD
from gibench.data import CIFAR10
from gibench.errors import ConfigurationError, ThreatModelError
from gibench.labels import Given
from gibench.likelihoods import Gaussian
from gibench.priors import ProbabilisticPCA
from gibench.search import LevenbergMarquardt, PrincipalComponents
from gibench.types import Batch, Observation, ThreatModel
from gibench.victims import lenet

KNOWN = ThreatModel(victim="initial", batch_norm="absent", prior_data="in_distribution")
VICTIM = small_victim().double()


def observe(batch: Batch) -> Observation:
    return FedSGD(VICTIM, threat_model=KNOWN)(batch.to(torch.float64))


def decomposed(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean, standard deviations and directions of the same images."""
    images = SmallData(count).split("prior")[0].flatten(1).double().numpy()
    mean = images.mean(0)
    _, values, rows = np.linalg.svd(images - mean, full_matrices=False)
    return mean, values / np.sqrt(count), rows


@pytest.mark.parametrize("count", [300, 60], ids=["more images than pixels", "fewer"])
def test_they_are_those_of_the_singular_value_decomposition(count: int) -> None:
    mean, deviations, rows = decomposed(count)
    pixels = PrincipalComponents(auxiliary=SmallData(count), components=20)
    coefficients = torch.zeros(20, 1, 20, dtype=torch.float64)
    coefficients[range(20), 0, range(20)] = 1.0
    moved = pixels.decode(coefficients, VICTIM)[:, 0].flatten(1).numpy() - mean
    for row, deviation, expected in zip(moved, deviations, rows, strict=False):
        sign = np.sign(row @ expected)
        np.testing.assert_allclose(sign * row, deviation * expected, atol=1e-9)
    prior = ProbabilisticPCA(auxiliary=SmallData(count), components=20)
    rest = (deviations[20:] ** 2).sum() / (192 - 20)
    away = batch_of(1, 1).images.double()
    across = away.flatten().numpy() - mean
    across -= rows[:20].T @ (rows[:20] @ across)
    along = rows[:20] @ (away.flatten().numpy() - mean) / deviations[:20]
    expected = (along @ along + across @ across / rest) / 2
    assert prior(away, observe(batch_of(1, 1))).item() == pytest.approx(expected, rel=1e-9)


def test_to_encode_is_to_project() -> None:
    pixels = PrincipalComponents(auxiliary=SmallData(), components=30)
    images = batch_of(2, 3).images.double()
    code = pixels.encode(images, VICTIM)
    assert code.shape == (2, 3, 30)
    near = pixels.decode(code, VICTIM)
    assert near.shape == images.shape
    torch.testing.assert_close(pixels.encode(near, VICTIM), code)
    away = pixels.decode(code + 0.01, VICTIM) - near
    assert ((images - near) * away).sum().abs() < 1e-9  # what is left is orthogonal to the span


def test_coefficients_of_the_images_themselves_are_standard() -> None:
    pixels = PrincipalComponents(auxiliary=SmallData(), components=30, images=None)
    code = pixels.encode(SmallData().split("prior")[0][:, None].double(), VICTIM)[:, 0]
    torch.testing.assert_close(code.mean(0), torch.zeros(30, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(code.T @ code / len(code), torch.eye(30, dtype=torch.float64), atol=1e-6, rtol=0)


def test_an_image_of_the_span_is_found_exactly() -> None:
    """Although 192 pixels of two images could not be: their update has 700 coordinates of little information."""
    pixels = PrincipalComponents(auxiliary=SmallData(), components=20)
    batch = batch_of(1, 2)
    inside = pixels.decode(0.3 * pixels.encode(batch.images.double(), VICTIM), VICTIM)
    assert 0 < inside.min() < inside.max() < 1
    attack = GradientMatching(
        likelihood=Gaussian(sigma=1.0), search=LevenbergMarquardt(steps=40), labels=Given(), pixels=pixels
    )
    labels = torch.tensor([[1, 4]])
    found = attack(observe(batch.model_copy(update={"images": inside, "labels": labels})))
    torch.testing.assert_close(found.images, inside, atol=1e-6, rtol=0)


def test_the_same_images_are_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    code = PrincipalComponents(auxiliary=SmallData(250), components=5).encode(batch_of(1, 1).images.double(), VICTIM)
    monkeypatch.setattr("gibench.priors.principal_components.eigh", None)
    again = PrincipalComponents(auxiliary=SmallData(250), components=5).encode(batch_of(1, 1).images.double(), VICTIM)
    assert torch.equal(code, again)


def test_what_does_not_fit_is_named() -> None:
    observation = observe(batch_of(1, 1))
    with pytest.raises(ConfigurationError, match="auxiliary is int, which has no prior split"):
        PrincipalComponents(auxiliary=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="take at least 1 component"):
        PrincipalComponents(auxiliary=SmallData(), components=0)
    with pytest.raises(ConfigurationError, match="start is 'gray'"):
        PrincipalComponents(auxiliary=SmallData(), start="gray")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="fewer than 40 components"):
        PrincipalComponents(auxiliary=SmallData(), components=40, images=30).check(observation)
    with pytest.raises(ConfigurationError, match="fewer than 192 components"):
        PrincipalComponents(auxiliary=SmallData(), components=192).check(observation)
    large = lenet()
    with pytest.raises(ConfigurationError, match=r"images \(3, 8, 8\), the victim takes \(3, 32, 32\)"):
        PrincipalComponents(auxiliary=SmallData(), components=4).check(FedSGD(large)(batch_of(1, 1, side=32)))
    attack = GradientMatching(
        likelihood=Gaussian(sigma=1.0),
        search=LevenbergMarquardt(),
        labels=Given(),
        pixels=PrincipalComponents(auxiliary=SmallData(), components=4),
    )
    with pytest.raises(ThreatModelError, match="prior_data"):
        attack(FedSGD(VICTIM)(batch_of(1, 1).to(torch.float64)))


@pytest.mark.slow
def test_two_hundred_say_what_cifar10_looks_like(cifar10_root: Path) -> None:
    """Of other images of CIFAR-10, the test split: within 25.1 dB on average, more with more."""
    with np.load(cifar10_root / "cifar10.npz") as data:
        images = torch.from_numpy(data["test_images"][:400]).permute(0, 3, 1, 2).double()[:, None] / 255
    victim = lenet().double()
    found = []
    for components in (100, 200):
        pixels = PrincipalComponents(auxiliary=CIFAR10(str(cifar10_root)), components=components, images=4000)
        near = pixels.decode(pixels.encode(images, victim), victim).clamp(0, 1)
        found.append(-10 * (near - images).square().flatten(1).mean(1).log10().mean().item())
    assert found[0] == pytest.approx(22.6, abs=0.2)
    assert found[1] == pytest.approx(25.1, abs=0.2)
