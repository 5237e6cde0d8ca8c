"""Every likelihood against its formula on plain lists, and its derivative against finite differences."""

from collections.abc import Callable

import pytest
import torch
from helpers import batch_of, small_victim
from references import densities
from references import matching as reference
from torch import Tensor

from gibench.clients import FedSGD
from gibench.errors import ConfigurationError
from gibench.likelihoods import (
    Cosine,
    Flat,
    Gaussian,
    Interval,
    Laplace,
    Likelihood,
    Masked,
    Mixture,
    Sign,
    Support,
    Without,
)
from gibench.types import Update

LIKELIHOODS: dict[str, tuple[Likelihood, Callable[[list[Tensor], list[Tensor]], Tensor]]] = {
    "gaussian": (Gaussian(), reference.squared_distance),
    "gaussian, sigma 0.3": (Gaussian(sigma=0.3), lambda a, b: reference.squared_distance(a, b) / (2 * 0.3**2)),
    "cosine": (Cosine(), reference.cosine_distance),
    "cosine, kappa 5": (Cosine(kappa=5.0), lambda a, b: 5 * reference.cosine_distance(a, b)),
    "flat": (Flat(), lambda a, _: torch.zeros((), dtype=a[0].dtype)),
    "laplace": (Laplace(scale=0.3), densities.absolute(0.3)),
    "laplace, smooth": (Laplace(scale=0.3, smoothing=0.1), densities.absolute(0.3, 0.1)),
}

OF_ERASED: dict[str, tuple[Likelihood, Callable[[list[Tensor], list[Tensor]], Tensor]]] = {
    **LIKELIHOODS,
    "masked gaussian": (Masked(Gaussian()), densities.on_support(lambda a, b: (a - b) ** 2)),
    "masked laplace": (Masked(Laplace(scale=2.0)), densities.on_support(lambda a, b: abs(a - b) / 2)),
    "masked, one tensor": (
        Masked(Gaussian(), tensors=["bias"]),
        lambda a, b: reference.squared_distance([a[0], a[1] * (b[1] != 0)], b),
    ),
    "masked cosine": (
        Masked(Cosine()),
        lambda a, b: reference.cosine_distance([a[0] * (b[0] != 0), a[1] * (b[1] != 0)], b),
    ),
    "without": (Without(Gaussian(), tensors=["weight"]), lambda a, b: reference.squared_distance(a[1:], b[1:])),
    "mixture, gaussian": (
        Mixture(noise="gaussian", scale=0.4, pruned=0.3),
        densities.mixture(lambda e: e**2 / (2 * 0.4**2), 0.3),
    ),
    "mixture, laplace": (
        Mixture(noise="laplace", scale=0.4, pruned=0.8),
        densities.mixture(lambda e: abs(e) / 0.4, 0.8),
    ),
    "support": (Support(Gaussian()), densities.erased_below(1.0, together=False)),
    "support, global": (Support(Gaussian(), scope="global", weight=0.5), densities.erased_below(0.5, together=True)),
    "interval, nearest": (Interval(bits=3, rounding="nearest"), densities.rounded(3)),
    "interval, stochastic": (Interval(bits=2, rounding="stochastic"), densities.rounded(1, tail=1e-2)),
    "interval, stochastic, long tail": (
        Interval(bits=3, rounding="stochastic", tail=0.2),
        densities.rounded(3, tail=0.2),
    ),
    "sign": (Sign(), densities.logistic(1.0)),
    "sign, sharp": (Sign(temperature=0.2), densities.logistic(0.2)),
}
"""Compared with updates of which a third is 0, so that there is a support; smooth at almost every point but `sign`."""


def update(seed: int, rows: int = 3) -> Update:
    source = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(rows, *shape, generator=source, dtype=torch.float64)
        for name, shape in {"weight": (4, 5), "bias": (4,)}.items()
    }


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_each_row_is_the_formula(name: str) -> None:
    likelihood, formula = LIKELIHOODS[name]
    simulated, observed = update(1), update(2)
    found = likelihood(simulated, observed)
    assert found.shape == (3,)
    for row in range(3):
        expected = formula([simulated[key][row] for key in observed], [observed[key][row] for key in observed])
        torch.testing.assert_close(found[row], expected)


def erased(seed: int) -> Update:
    """An update of which the smallest third of each tensor is 0."""
    return {
        name: torch.where(
            value.abs() >= value.abs().flatten(1).quantile(1 / 3, dim=1).reshape(-1, *[1] * (value.ndim - 1)),
            value,
            0.0,
        )
        for name, value in update(seed).items()
    }


@pytest.mark.parametrize("name", OF_ERASED)
def test_each_row_is_the_formula_where_entries_are_erased(name: str) -> None:
    likelihood, formula = OF_ERASED[name]
    simulated, observed = update(1), erased(2)
    assert all((value == 0).any() for value in observed.values())
    found = likelihood(simulated, observed)
    for row in range(3):
        expected = formula([simulated[key][row] for key in observed], [observed[key][row] for key in observed])
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("name", [name for name in OF_ERASED if not name.startswith(("flat", "sign"))])
def test_derivatives_where_entries_are_erased(name: str) -> None:
    likelihood, observed = OF_ERASED[name][0], erased(2)
    leaves = [tensor.requires_grad_() for tensor in update(1).values()]
    assert torch.autograd.gradcheck(lambda w, b: likelihood({"weight": w, "bias": b}, observed), leaves)
    gradients = torch.autograd.grad(
        likelihood(dict(zip(observed, leaves, strict=True)), observed).sum(), leaves, allow_unused=True
    )
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_the_derivative_of_sign_takes_its_scale_for_a_constant() -> None:
    """So no image gains by a longer update: the value does not change with the length, and the slope is that of it."""
    observed = {name: value.sign() for name, value in erased(2).items()}
    simulated = {name: value.requires_grad_() for name, value in update(1).items()}
    found = torch.autograd.grad(Sign(temperature=0.7)(simulated, observed).sum(), list(simulated.values()))
    for slope, (name, value) in zip(found, simulated.items(), strict=True):
        scale = 0.7 * value.detach().square().flatten(1).mean(1).sqrt().reshape(-1, *[1] * (value.ndim - 1))
        signs = observed[name]
        expected = -signs / scale * torch.sigmoid(-signs * value / scale) * (signs != 0)
        torch.testing.assert_close(slope, expected.detach())
    longer = {name: 1e6 * value for name, value in simulated.items()}
    torch.testing.assert_close(Sign()(longer, observed), Sign()(simulated, observed))


def test_sign_counts_wrong_signs_at_low_temperature() -> None:
    simulated = {"w": torch.tensor([[2.0, 2.0, -2.0, 2.0]], dtype=torch.float64)}
    observed = {"w": torch.tensor([[1.0, -1.0, 1.0, 0.0]], dtype=torch.float64)}
    value = 1e-3 * Sign(temperature=1e-3)(simulated, observed)
    torch.testing.assert_close(value, torch.tensor([2.0], dtype=torch.float64))


def test_names_are_checked_on_binding() -> None:
    observation = FedSGD(small_victim())(batch_of(1, 1))
    for build in (Masked, Without):
        with pytest.raises(ConfigurationError, match=r"no parameter 'fc9.weight'; name some of network.0.weight"):
            build(Gaussian(), tensors=["fc9.weight"]).hypothesis(observation)
        likelihood = build(Gaussian(), tensors=["network.0.weight"])
        assert likelihood.hypothesis(observation).likelihood is likelihood
    with pytest.raises(ConfigurationError, match="leaves out every parameter"):
        Without(Gaussian(), tensors=list(observation.update)).hypothesis(observation)


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "flat"])
def test_least_at_the_observed_update_and_differentiable(name: str) -> None:
    likelihood, _ = LIKELIHOODS[name]
    observed = update(2)
    at_truth = likelihood(observed, observed)
    torch.testing.assert_close(at_truth, torch.zeros(3, dtype=torch.float64))
    assert (likelihood(update(1), observed) > at_truth).all()
    simulated = {key: tensor.requires_grad_() for key, tensor in update(1).items()}
    assert torch.autograd.gradcheck(
        lambda w, b: likelihood({"weight": w, "bias": b}, observed), (simulated["weight"], simulated["bias"])
    )


def test_cosine_ignores_length_and_survives_zero() -> None:
    simulated, observed = update(1), update(2)
    scaled = {key: 1e-6 * tensor for key, tensor in simulated.items()}
    torch.testing.assert_close(Cosine()(scaled, observed), Cosine()(simulated, observed))
    zero = {key: torch.zeros_like(tensor).requires_grad_() for key, tensor in observed.items()}
    value = Cosine()(zero, observed)
    assert (value == 1).all()
    gradients = torch.autograd.grad(value.sum(), list(zero.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("length", [1e-12, 1e12])
def test_cosine_in_single_precision_ignores_length_too(length: float) -> None:
    """The squared lengths of both updates multiply to 1e-48 or 1e48, which float32 cannot hold."""
    simulated, observed = ({key: tensor.float() for key, tensor in update(seed).items()} for seed in (1, 2))
    scaled = [{key: length * tensor for key, tensor in either.items()} for either in (simulated, observed)]
    torch.testing.assert_close(Cosine()(*scaled), Cosine()(simulated, observed))


NAN = float("nan")
REFUSED: dict[str, Callable[[], Likelihood]] = {
    "sigma is 0.0": lambda: Gaussian(sigma=0.0),
    "sigma is nan": lambda: Gaussian(sigma=NAN),
    "kappa is -1.0": lambda: Cosine(kappa=-1.0),
    "kappa is nan": lambda: Cosine(kappa=NAN),
    "scale is -1.0": lambda: Laplace(scale=-1.0),
    "scale is nan": lambda: Laplace(scale=NAN),
    "smoothing -0.1": lambda: Laplace(smoothing=-0.1),
    "smoothing nan": lambda: Laplace(smoothing=NAN),
    "scale is 0.0": lambda: Mixture(noise="gaussian", scale=0.0, pruned=0.5),
    "scale is nan and pruned": lambda: Mixture(noise="gaussian", scale=NAN, pruned=0.5),
    "pruned 1.0": lambda: Mixture(noise="laplace", scale=1.0, pruned=1.0),
    "noise is 'cauchy'": lambda: Mixture(noise="cauchy", scale=1.0, pruned=0.5),  # type: ignore[arg-type]
    "weight is -1.0": lambda: Support(Gaussian(), weight=-1.0),
    "weight is nan": lambda: Support(Gaussian(), weight=NAN),
    "scope 'layer'": lambda: Support(Gaussian(), scope="layer"),  # type: ignore[arg-type]
    "bits is 1": lambda: Interval(bits=1, rounding="nearest"),
    "rounding 'up'": lambda: Interval(bits=2, rounding="up"),  # type: ignore[arg-type]
    "tail 1.0": lambda: Interval(bits=2, rounding="nearest", tail=1.0),
    "temperature is 0.0": lambda: Sign(temperature=0.0),
    "temperature is nan": lambda: Sign(temperature=NAN),
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_settings_are_named(words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        REFUSED[words]()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
