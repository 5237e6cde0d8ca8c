"""What holds of likelihoods for all updates: limits in which one is another, and parts that change nothing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gibench.likelihoods import Cosine, Gaussian, Interval, Laplace, Masked, Mixture, Support, Without
from gibench.likelihoods.products import products
from gibench.types import Update


def update(seed: int, rows: int = 3) -> Update:
    source = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(rows, *shape, generator=source, dtype=torch.float64)
        for name, shape in {"weight": (4, 5), "bias": (4,)}.items()
    }


@given(st.floats(0.01, 10), st.sampled_from(["gaussian", "laplace"]), st.integers(0, 1000))
def test_a_mixture_without_pruning_is_the_noise(scale: float, noise: str, seed: int) -> None:
    """Exactly at p = 0, and in the limit: where both updates are near each other, a rare pruning matters little."""
    simulated, observed = update(seed), update(seed + 1)
    plain = Gaussian(sigma=scale) if noise == "gaussian" else Laplace(scale=scale)
    expected = plain(simulated, observed)
    torch.testing.assert_close(Mixture(noise=noise, scale=scale, pruned=0.0)(simulated, observed), expected)  # type: ignore[arg-type]
    near = {name: value + 0.01 * scale for name, value in observed.items()}
    rare = Mixture(noise=noise, scale=scale, pruned=1e-12)(near, observed)  # type: ignore[arg-type]
    torch.testing.assert_close(rare, plain(near, observed))


@given(st.integers(0, 1000), st.floats(0.1, 10), st.booleans())
def test_a_mask_on_a_full_support_changes_nothing(seed: int, scale: float, normal: bool) -> None:
    simulated, observed = update(seed), update(seed + 1)
    distance = Gaussian(sigma=scale) if normal else Laplace(scale=scale)
    for masked in (Masked(distance), Masked(distance, tensors=["bias"]), Support(distance)):
        torch.testing.assert_close(masked(simulated, observed), distance(simulated, observed))


@given(st.integers(0, 1000), st.sampled_from(["weight", "bias"]), st.booleans())
def test_without_leaves_out_one_tensor_and_products_suffice(seed: int, left: str, angle: bool) -> None:
    distance = Cosine() if angle else Gaussian()
    likelihood, simulated, observed = Without(distance, tensors=[left]), update(seed), update(seed + 1)
    assert likelihood.reads == "products"
    assert likelihood.cancels == distance.cancels
    found = likelihood(simulated, observed)
    (kept,) = set(observed) - {left}
    torch.testing.assert_close(found, distance({kept: simulated[kept]}, {kept: observed[kept]}))
    torch.testing.assert_close(likelihood.of_products(products(simulated, observed)), found)
    torch.testing.assert_close(likelihood({**simulated, left: 9 * simulated[left]}, observed), found)
    other = likelihood({**simulated, kept: simulated[kept] + observed[kept]}, observed)
    assert (other != found).all()


@given(st.integers(0, 1000), st.sampled_from([1e-1, 1e-2, 1e-3]))
def test_the_tail_of_stochastic_rounding_has_value_and_slope_of_the_density(seed: int, tail: float) -> None:
    """Across the border the figure and its derivative are continuous, up to their own change over the distance."""
    gap = 1e-9
    observed = {"w": torch.tensor([[1.0, (seed % 7) / 7]], dtype=torch.float64)}
    values, slopes = [], []
    for side in (-gap, gap):
        place = torch.tensor([[1.0, (seed % 7) / 7 + 1 - tail + side]], dtype=torch.float64).requires_grad_()
        value = Interval(bits=2, rounding="stochastic", tail=tail)({"w": place}, observed)
        values.append(value)
        slopes.append(torch.autograd.grad(value.sum(), place)[0][0, 1])
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=0)
    torch.testing.assert_close(slopes[0].item(), 1 / tail, rtol=1e-4, atol=0)
