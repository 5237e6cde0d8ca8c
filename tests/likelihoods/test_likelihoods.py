"""Every likelihood against its formula on plain lists, and its derivative against finite differences."""

from collections.abc import Callable

import pytest
import torch
from references import matching as reference
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods import Cosine, Flat, Gaussian, Likelihood
from gibench.types import Update

LIKELIHOODS: dict[str, tuple[Likelihood, Callable[[list[Tensor], list[Tensor]], Tensor]]] = {
    "gaussian": (Gaussian(), reference.squared_distance),
    "gaussian, sigma 0.3": (Gaussian(sigma=0.3), lambda a, b: reference.squared_distance(a, b) / (2 * 0.3**2)),
    "cosine": (Cosine(), reference.cosine_distance),
    "cosine, kappa 5": (Cosine(kappa=5.0), lambda a, b: 5 * reference.cosine_distance(a, b)),
    "flat": (Flat(), lambda a, _: torch.zeros((), dtype=a[0].dtype)),
}


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


def test_bad_settings_are_named() -> None:
    for build in (lambda: Gaussian(sigma=0.0), lambda: Cosine(kappa=-1.0)):
        with pytest.raises(ConfigurationError):
            build()
