"""Every prior keeps one contract; total variation and the norm against loops over pixels."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import SmallData, batch_of, small_victim
from references import matching as reference
from references import priors as slow
from torch import Tensor

import gibench.priors
from gibench.clients import FedSGD
from gibench.errors import ConfigurationError, RefusalError
from gibench.priors import (
    BatchNormStatistics,
    GaussianPixels,
    GroupConsistency,
    L2Norm,
    Prior,
    ProbabilisticPCA,
    TotalVariation,
)
from gibench.priors.total_variation import total_variation
from gibench.types import Observation, ThreatModel

PRIORS: dict[str, tuple[Callable[[float], Prior], str]] = {
    "batch norm, running": (lambda weight: BatchNormStatistics(weight=weight), "eval"),
    "batch norm, exact": (lambda weight: BatchNormStatistics(weight=weight, statistics="exact"), "shared"),
    "batch norm, proxy": (lambda weight: BatchNormStatistics(weight=weight, statistics="proxy"), "private"),
    "gaussian pixels": (lambda weight: GaussianPixels(weight=weight), "eval"),
    "group": (lambda weight: GroupConsistency(weight=weight, start=0), "eval"),
    "norm": (lambda weight: L2Norm(weight=weight), "eval"),
    "pca": (lambda weight: ProbabilisticPCA(auxiliary=SmallData(), components=9, weight=weight), "eval"),
    "tv": (lambda weight: TotalVariation(weight=weight), "eval"),
    "tv, isotropic": (lambda weight: TotalVariation(weight=weight, kind="isotropic"), "eval"),
    "tv, opponents": (lambda weight: TotalVariation(weight=weight, opponents=True), "eval"),
    "tv, smooth": (lambda weight: TotalVariation(weight=weight, smoothing=1e-2), "eval"),
    "tv, smooth isotropic": (lambda weight: TotalVariation(weight=weight, kind="isotropic", smoothing=0.1), "eval"),
    "tv, squared": (lambda weight: TotalVariation(weight=weight, kind="squared"), "eval"),
}


def observe(regime: str, updates: int = 3, size: int = 2) -> Observation:
    """Of a victim with BatchNorm, each update in two rows, as restarts are."""
    known = ThreatModel.model_validate({"victim": "initial", "batch_norm": regime})
    client = FedSGD(small_victim(batch_norm=True), threat_model=known).double()
    rows = [update for update in range(updates) for _ in range(2)]
    return client(batch_of(updates, size).to(torch.float64)).select(rows)


def candidates(observation: Observation) -> Tensor:
    shape = observation.updates, 2, *observation.image_shape
    return torch.rand(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def value(prior: Prior, images: Tensor, observation: Observation) -> Tensor:
    """As a search would evaluate it."""
    prior.check(observation)
    searched = prior.for_search()
    searched.advance(images.detach(), observation)
    found: Tensor = searched(images, observation)
    return found


@pytest.mark.parametrize("name", PRIORS)
def test_contract(name: str) -> None:
    """One value for each row, proportional to the weight, that no other update changes."""
    build, regime = PRIORS[name]
    observation = observe(regime)
    images = candidates(observation)
    found = value(build(0.3), images, observation)
    assert found.shape == (6,)
    assert (found > 0).all()
    assert not value(build(0.0), images, observation).any()
    torch.testing.assert_close(value(build(0.9), images, observation), 3 * found)
    rows = [4, 5, 0, 1]
    alone = value(build(0.3), images[rows], observation.select(rows))
    torch.testing.assert_close(alone, found[rows], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PRIORS)
def test_the_derivative_is_that_of_the_value(name: str) -> None:
    build, regime = PRIORS[name]
    observation = observe(regime, updates=1)
    images = candidates(observation)
    prior = build(0.3).for_search()
    prior.advance(images, observation)  # the consensus is a constant
    images = images[..., :4, :4].repeat(1, 1, 1, 2, 2) if prior.couples else images
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def along(step: Tensor) -> Tensor:
        return prior(images + step * direction, observation)  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(along, torch.zeros((), dtype=torch.float64, requires_grad=True), eps=1e-7)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_bad_weight_is_named(name: str, weight: float) -> None:
    with pytest.raises(ConfigurationError, match="weight"):
        PRIORS[name][0](weight)


def test_every_prior_is_in_the_table() -> None:
    built = {type(build(1.0)).__name__ for build, _ in PRIORS.values()}
    assert built == set(gibench.priors.__all__) - {"Prior"}


def test_anisotropic_is_the_mean_of_absolute_differences() -> None:
    images = torch.rand(3, 2, 3, 5, 7, dtype=torch.float64)
    expected = torch.stack([reference.total_variation(batch) for batch in images])
    torch.testing.assert_close(total_variation(images), expected)


def test_isotropic_on_a_ramp() -> None:
    """X = 0.1 w + 0.2 h has the same gradient everywhere: sqrt(0.05)."""
    ramp = 0.1 * torch.arange(4.0, dtype=torch.float64) + 0.2 * torch.arange(3.0, dtype=torch.float64)[:, None]
    found = total_variation(ramp.expand(1, 1, 3, 3, 4), kind="isotropic")
    torch.testing.assert_close(found, torch.tensor([0.05**0.5], dtype=torch.float64), rtol=1e-6, atol=0)


def test_opponents_are_channels_of_their_own() -> None:
    observation = observe("eval")
    images = candidates(observation)
    expected = torch.stack(
        [
            reference.total_variation(torch.from_numpy(np.stack([slow.opponents(image) for image in batch.numpy()])))
            for batch in images
        ]
    )
    torch.testing.assert_close(TotalVariation(weight=1.0, opponents=True)(images, observation), expected)


def test_opponents_of_gray_images_are_refused() -> None:
    gray = observe("eval").model_copy(update={"image_shape": (1, 8, 8)})
    TotalVariation(weight=1.0).check(gray)
    with pytest.raises(RefusalError, match="opponent colors need 3 channels, the images have 1"):
        TotalVariation(weight=1.0, opponents=True).check(gray)


def test_the_norm_is_of_each_image_in_the_units_of_the_victim() -> None:
    observation = observe("eval")
    images = candidates(observation)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])
    for batch, found in zip(images.numpy(), L2Norm(weight=2.0)(images, observation).tolist(), strict=True):
        lengths = [np.sqrt((((image - mean[:, None, None]) / std[:, None, None]) ** 2).sum()) for image in batch]
        assert found == pytest.approx(2 * sum(lengths) / len(lengths), rel=1e-6)  # the victim's std is rounded
