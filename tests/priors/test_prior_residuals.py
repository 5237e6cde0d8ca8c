"""The least-squares form of every prior: its slope is the derivative, its parabola lies above."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers import SmallData, batch_of, small_victim
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jacrev, jvp, vjp, vmap

import gibench.priors
from gibench.clients import FedSGD
from gibench.diagnostics.cramer_rao import PRIOR_VARIANCE, bayesian_psnr_bound
from gibench.diagnostics.spectrum import Spectrum
from gibench.errors import ConfigurationError
from gibench.likelihoods import Gaussian
from gibench.priors import (
    BatchNormStatistics,
    GaussianPixels,
    GroupConsistency,
    L2Norm,
    Prior,
    ProbabilisticPCA,
    TotalVariation,
)
from gibench.types import Observation, ThreatModel


class Form(NamedTuple):
    """A prior by its weight, the BatchNorm regime, and whether half its squared rows are its value."""

    build: Callable[[float], Prior]
    regime: str = "eval"
    exact: bool = False


FORMS = {
    "batch norm, running": Form(lambda weight: BatchNormStatistics(weight=weight)),
    "batch norm, exact": Form(lambda weight: BatchNormStatistics(weight=weight, statistics="exact"), "shared"),
    "batch norm, proxy": Form(lambda weight: BatchNormStatistics(weight=weight, statistics="proxy"), "private"),
    "gaussian pixels": Form(lambda weight: GaussianPixels(mean=0.4, std=0.2, weight=weight), exact=True),
    "norm": Form(lambda weight: L2Norm(weight=weight)),
    "pca": Form(lambda weight: components(weight), exact=True),
    "tv, smooth": Form(lambda weight: TotalVariation(weight=weight, smoothing=1e-3)),
    "tv, smooth opponents": Form(lambda weight: TotalVariation(weight=weight, smoothing=1e-2, opponents=True)),
    "tv, isotropic": Form(lambda weight: TotalVariation(weight=weight, kind="isotropic")),
    "tv, smooth isotropic": Form(
        lambda weight: TotalVariation(weight=weight, kind="isotropic", smoothing=0.1, opponents=True)
    ),
    "tv, squared": Form(lambda weight: TotalVariation(weight=weight, kind="squared", opponents=True), exact=True),
}


@cache
def observe(regime: str, updates: int = 3) -> Observation:
    known = ThreatModel.model_validate({"victim": "initial", "batch_norm": regime})
    return FedSGD(small_victim(batch_norm=True), threat_model=known).double()(batch_of(updates, 2).to(torch.float64))


def components(weight: float) -> Prior:
    """Fitted, as before a search."""
    prior = ProbabilisticPCA(auxiliary=SmallData(), components=9, weight=weight)
    prior.check(observe("eval"))
    return prior


def noise(*shape: int, seed: int = 5) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_slope(prior: Prior, images: Tensor, observation: Observation) -> None:
    leaf = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(prior(leaf, observation).sum(), leaf)
    rows, pull = vjp(lambda images: prior.residuals(images, observation), images)
    assert rows.shape[0] == len(images)
    assert rows.ndim == 2
    assert expected.any()
    torch.testing.assert_close(pull(rows)[0], expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("name", FORMS)
def test_the_rows_have_the_slope_of_the_value(name: str) -> None:
    build, regime, exact = FORMS[name]
    observation, images = observe(regime), noise(3, 2, 3, 8, 8)
    assert_slope(build(0.3), images, observation)
    half = build(0.3).residuals(images, observation).square().sum(1) / 2
    assert exact == torch.allclose(half, build(0.3)(images, observation), rtol=1e-12, atol=0)
    assert not build(0.0).residuals(images, observation).any()


@pytest.mark.parametrize("name", FORMS)
def test_the_rows_have_the_slope_of_the_value_on_real_images(name: str, cifar10_root: Path) -> None:
    """Of which neighbors are often equal, so that differences are 0."""
    with np.load(cifar10_root / "cifar10.npz") as data:
        pixels = torch.from_numpy(data["test_images"][:6, 12:20, 12:20]).permute(0, 3, 1, 2).double() / 255
    images = pixels.unflatten(0, (3, 2))
    images[0, 0, :, :4] = images[0, 0, :, :1]
    assert_slope(FORMS[name].build(0.3), images, observe(FORMS[name].regime))


@pytest.mark.parametrize("name", FORMS)
def test_forward_products_take_the_weights_for_constants(name: str) -> None:
    build, regime, _ = FORMS[name]
    prior, observation, images = build(0.3), observe(regime), noise(3, 2, 3, 8, 8)
    directions = noise(4, *images.shape, seed=6) - 0.5

    def product(direction: Tensor) -> Tensor:
        return jvp(lambda images: prior.residuals(images, observation), (images,), (direction,))[1]

    together = vmap(product)(directions)
    torch.testing.assert_close(together, torch.stack([product(each) for each in directions]), rtol=1e-9, atol=1e-12)
    leaf = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(prior(leaf, observation).sum(), leaf)
    rows = prior.residuals(images, observation)
    torch.testing.assert_close(
        (together * rows).flatten(1).sum(1), (directions * expected).flatten(1).sum(1), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", FORMS)
def test_rows_and_products_are_finite_where_the_value_is_least(name: str) -> None:
    build, regime, _ = FORMS[name]
    prior, observation = build(0.3), observe(regime)
    level = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)[:, None, None]
    for place in (level.repeat(3, 2, 1, 8, 8), batch_of(3, 2).images.double()):  # the mean color; the private images
        rows, product = jvp(lambda x: prior.residuals(x, observation), (place,), (torch.ones_like(place),))
        assert rows.isfinite().all()
        assert product.isfinite().all()


def test_every_prior_has_a_form_or_says_that_it_has_none() -> None:
    built = {type(form.build(1.0)).__name__ for form in FORMS.values()}
    assert built == set(gibench.priors.__all__) - {"Prior", "GroupConsistency"}
    observation, images = observe("eval"), noise(3, 2, 3, 8, 8)
    with pytest.raises(
        ConfigurationError, match=r"^GroupConsistency has no least-squares form; search it by Adam or L-BFGS.$"
    ):
        GroupConsistency(weight=1.0).residuals(images, observation)
    with pytest.raises(ConfigurationError, match=r"needs a smoothed total variation; set smoothing, e.g. 1e-3.$"):
        TotalVariation(weight=1.0).residuals(images, observation)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(1e-4, 1.0), st.floats(1e-4, 1.0))
def test_parabolas_lie_above(seed: int, smoothing: float, step: float) -> None:
    """The majorization that makes reweighting descend."""
    old = noise(2, 1, 3, 4, 5, seed=seed)
    move = step * (noise(2, 1, 3, 4, 5, seed=seed + 1) - 0.5)
    observation = observe("eval", 2)
    for prior in (
        TotalVariation(weight=2.0, smoothing=smoothing),
        TotalVariation(weight=2.0, smoothing=smoothing, opponents=True),
        TotalVariation(weight=2.0, kind="isotropic", smoothing=smoothing),
        L2Norm(weight=2.0),
    ):
        rows, moved = jvp(lambda x: prior.residuals(x, observation), (old,), (move,))  # noqa: B023 - used at once
        parabola = prior(old, observation) + (rows * moved).sum(1) + moved.square().sum(1) / 2
        assert (prior(old + move, observation) <= parabola + 1e-12).all()


def test_smoothing_rounds_the_corner_of_each_difference() -> None:
    """One step of height 0.3 in a row of four pixels; and 0 for a flat image, whatever the smoothing."""
    image = torch.tensor([0.2, 0.2, 0.5, 0.5], dtype=torch.float64).expand(1, 1, 1, 1, 4).repeat(1, 1, 1, 2, 1)
    observation = observe("eval", 1)
    found = TotalVariation(weight=1.0, smoothing=0.4)(image, observation)
    assert found.item() == pytest.approx((math.hypot(0.3, 0.4) - 0.4) / 3)
    isotropic = TotalVariation(weight=1.0, kind="isotropic", smoothing=0.4)(image, observation)
    assert isotropic.item() == pytest.approx((math.hypot(0.3, 0.4) - 0.4) / 3, abs=1e-7)
    for smoothing in (0.0, 1e-3, 0.4):
        for kind in ("anisotropic", "isotropic"):
            flat = TotalVariation(weight=1.0, kind=kind, smoothing=smoothing)(0 * image, observation)  # type: ignore[arg-type]
            assert flat.item() == pytest.approx(0, abs=1.1e-4)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: TotalVariation(weight=1.0, smoothing=-1.0), "smoothing of the total variation is -1.0"),
        (lambda: TotalVariation(weight=1.0, smoothing=math.nan), "smoothing of the total variation is nan"),
        (lambda: TotalVariation(weight=1.0, kind="squared", smoothing=0.1), "leave the smoothing out"),
        (lambda: GaussianPixels(std=0.0), "std 0.0"),
        (lambda: GaussianPixels(std=math.inf), "std inf"),
        (lambda: GaussianPixels(mean=math.nan), "mean is nan"),
    ],
)
def test_bad_settings_are_named(build: Callable[[], Prior], words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        build()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_gaussian_pixels_are_a_density_of_the_whole_batch() -> None:
    """Values differ as those of torch.distributions do; the default has the mean and variance of U(0, 1)."""
    observation, images = observe("eval"), noise(3, 2, 3, 8, 8)
    law = torch.distributions.Normal(torch.tensor(0.3, dtype=torch.float64), 0.7)
    expected = -law.log_prob(images).flatten(1).sum(1)
    constant = 2 * 3 * 8 * 8 * math.log(0.7 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(GaussianPixels(mean=0.3, std=0.7)(images, observation), expected - constant)
    assert GaussianPixels().std ** 2 == pytest.approx(PRIOR_VARIANCE)
    assert torch.distributions.Uniform(0, 1).variance.item() == pytest.approx(GaussianPixels().std ** 2)
    assert GaussianPixels().mean == 0.5


def test_the_rows_of_noise_and_pixels_are_the_bayesian_bound() -> None:
    """(J^T J)^-1 of both together is the posterior covariance, whose mean variance is what the bound says."""
    matrix = noise(20, 48, seed=1) - 0.5  # fewer observations than pixels
    observation, images = observe("eval", 1), noise(1, 1, 3, 4, 4)
    observed = {"w": noise(1, 20, seed=2)}

    def rows(images: Tensor) -> Tensor:
        simulated = {"w": images.flatten(1) @ matrix.T}
        likelihood = Gaussian(sigma=0.05).residuals(simulated, observed)
        return torch.cat([likelihood["w"], GaussianPixels().residuals(images, observation)], 1)

    jacobian = jacrev(rows)(images).reshape(68, 48)
    mean_square = torch.linalg.inv(jacobian.T @ jacobian).diagonal().mean().item()
    values = torch.cat([torch.linalg.svdvals(matrix), torch.zeros(28, dtype=torch.float64)])
    bound = bayesian_psnr_bound(Spectrum(values, 20, 1e-12), sigma=0.05)
    assert bound.value == pytest.approx(-10 * math.log10(mean_square))
