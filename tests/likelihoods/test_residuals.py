"""The least-squares form of every likelihood: its slope is the derivative, its parabola lies above."""

from typing import NamedTuple

import pytest
import torch
from helpers import batch_of, small_victim
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap

import gibench.likelihoods
from gibench.defenses import CodeFromGradient, Density
from gibench.errors import ConfigurationError
from gibench.likelihoods import (
    Cosine,
    Features,
    Flat,
    Gaussian,
    Interval,
    Laplace,
    Likelihood,
    Masked,
    Mixture,
    Partial,
    Sign,
    Support,
    Without,
)
from gibench.types import Update

SHAPES = {"conv.weight": (3, 2, 2), "conv.bias": (3,), "fc.weight": (4, 5), "fc.bias": (4,)}
ENTRIES = 39


class Form(NamedTuple):
    """A likelihood, and whether half its squared rows are its value."""

    likelihood: Likelihood
    exact: bool


FORMS = {
    "gaussian": Form(Gaussian(), True),
    "gaussian, sigma 0.3": Form(Gaussian(sigma=0.3), True),
    "cosine": Form(Cosine(), True),
    "cosine, kappa 5": Form(Cosine(kappa=5.0), True),
    "laplace": Form(Laplace(scale=0.3), False),
    "laplace, smooth": Form(Laplace(scale=0.3, smoothing=0.1), False),
    "flat": Form(Flat(), True),
    "interval, nearest": Form(Interval(bits=3, rounding="nearest"), True),
    "interval, stochastic": Form(Interval(bits=2, rounding="stochastic"), False),
    "interval, long tail": Form(Interval(bits=3, rounding="stochastic", tail=0.2), False),
    "masked gaussian": Form(Masked(Gaussian()), True),
    "masked cosine, one tensor": Form(Masked(Cosine(), tensors=["fc.weight"]), True),
    "masked laplace": Form(Masked(Laplace(scale=2.0)), False),
    "without": Form(Without(Gaussian(sigma=2.0), tensors=["conv.bias"]), True),
    "partial": Form(Partial(Gaussian(), tensors=["conv*"], weights="linear"), True),
    "partial, top": Form(Partial(Cosine(), top=2, weights="exponential"), True),
    "partial, top laplace": Form(Partial(Laplace(), top=1), False),
    "partial interval": Form(Partial(Interval(bits=4, rounding="nearest"), top=3), True),
    "support": Form(Support(Gaussian()), True),
    "support, global": Form(Support(Masked(Cosine()), scope="global", weight=0.5), True),
    "support of a part": Form(Support(Without(Gaussian(), tensors=["fc.weight"]), weight=0.0), True),
    "features": Form(Features(Gaussian()), True),
    "features alone": Form(Features(Flat(), weight=2.0), True),
    "features of a part": Form(Features(Partial(Laplace(), last=2)), False),
    "mixture, gaussian": Form(Mixture(noise="gaussian", scale=0.4, pruned=0.3), False),
    "mixture, gaussian alone": Form(Mixture(noise="gaussian", scale=0.4, pruned=0.0), True),
    "mixture, laplace": Form(Mixture(noise="laplace", scale=0.4, pruned=0.8), False),
    "sign": Form(Sign(), False),
    "sign, sharp": Form(Sign(temperature=0.2), False),
}


def update(seed: int, rows: int = 3) -> Update:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, *shape, generator=source, dtype=torch.float64) for name, shape in SHAPES.items()}


def erased(seed: int, rows: int = 3) -> Update:
    """An update of which the smaller entries are 0, and in one row a whole tensor."""
    kept = {name: torch.where(value.abs() > 0.4, value, 0.0) for name, value in update(seed, rows).items()}
    kept["conv.bias"][0] = 0.0
    return kept


def observed_by(name: str, seed: int = 2) -> Update:
    found = erased(seed)
    return {key: value.sign() for key, value in found.items()} if name.startswith("sign") else found


def slope(likelihood: Likelihood, simulated: Update, observed: Update) -> Update:
    leaves = {name: value.clone().requires_grad_() for name, value in simulated.items()}
    value = likelihood(leaves, observed).sum()
    if not value.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def half_squares(rows: Update) -> Tensor:
    return sum((value.square().flatten(1).sum(1) / 2 for value in rows.values()), start=torch.zeros(3).double())


def assert_same(found: Update, expected: Update) -> None:
    assert set(found) == set(expected)
    size = max((value.abs().max().item() for value in expected.values() if value.numel()), default=0.0)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9 * size)


def test_every_likelihood_has_a_form() -> None:
    built = {type(form.likelihood).__name__ for form in FORMS.values()}
    assert built == set(gibench.likelihoods.__all__) - {"Likelihood", "Hidden", "Hypothesis"}


@pytest.mark.parametrize("name", FORMS)
def test_the_rows_have_the_slope_of_the_value(name: str) -> None:
    (likelihood, exact), simulated, observed = FORMS[name], update(1), observed_by(name)
    rows, pull = vjp(lambda simulated: likelihood.residuals(simulated, observed), simulated)
    expected = slope(likelihood, simulated, observed)
    assert_same(pull(rows)[0], expected)
    assert name == "flat" or any(value.any() for value in expected.values())
    assert exact == torch.allclose(half_squares(rows), likelihood(simulated, observed), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", FORMS)
def test_forward_products_take_the_weights_for_constants(name: str) -> None:
    """Each product is that of a Jacobian whose transpose times r is the slope; in one pass as one by one."""
    likelihood, simulated, observed = FORMS[name].likelihood, update(1), observed_by(name)
    directions = [update(seed) for seed in (5, 6, 7, 8)]

    def product(direction: Update) -> Update:
        found: Update = jvp(lambda simulated: likelihood.residuals(simulated, observed), (simulated,), (direction,))[1]
        return found

    together = vmap(product)({key: torch.stack([each[key] for each in directions]) for key in simulated})
    rows, expected = likelihood.residuals(simulated, observed), slope(likelihood, simulated, observed)
    for index, direction in enumerate(directions):
        alone = product(direction)
        assert_same({key: value[index] for key, value in together.items()}, alone)
        along = sum((alone[key] * rows[key]).sum() for key in rows)
        torch.testing.assert_close(
            torch.as_tensor(along).double(),
            sum((direction[key] * expected[key]).sum() for key in expected),
            rtol=1e-9,
            atol=1e-9,
        )


@pytest.mark.parametrize("name", FORMS)
def test_each_update_has_its_own_rows(name: str) -> None:
    likelihood, simulated, observed = FORMS[name].likelihood, update(1), observed_by(name)

    def one(simulated: Update, observed: Update) -> Update:
        rows = likelihood.residuals(
            *({key: value[None] for key, value in each.items()} for each in (simulated, observed))
        )
        return {key: value[0] for key, value in rows.items()}

    assert_same(vmap(one)(simulated, observed), likelihood.residuals(simulated, observed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FORMS)
def test_rows_and_products_are_finite_at_the_truth_and_at_zero(name: str, dtype: torch.dtype) -> None:
    likelihood = FORMS[name].likelihood
    observed = {key: value.to(dtype) for key, value in observed_by(name).items()}
    direction = {key: torch.ones_like(value) for key, value in observed.items()}
    for factor in (1.0,) if isinstance(likelihood, Sign) else (1.0, 0.0):  # the signs of a zero update have no scale
        place = {key: factor * value for key, value in observed.items()}
        rows, product = jvp(lambda place: likelihood.residuals(place, observed), (place,), (direction,))
        for value in (*rows.values(), *product.values()):
            assert value.dtype == dtype
            assert value.isfinite().all()
        if factor and not isinstance(likelihood, Sign):
            assert all((value.abs() < 1e-6).all() for value in rows.values())


@pytest.mark.parametrize("name", FORMS)
def test_what_is_not_compared_is_zero_or_absent(name: str) -> None:
    likelihood, observed = FORMS[name].likelihood, observed_by(name)
    simulated, compared = update(1), likelihood.compared(observed)
    rows = likelihood.residuals(simulated, observed)
    for key in SHAPES:
        silent = ~compared[key] if key in compared else torch.ones_like(observed[key], dtype=torch.bool)
        assert key not in rows or not rows[key][silent].any()
    found = likelihood.informative(observed)
    assert found.dtype == torch.int64
    assert found.tolist() == [sum(int(mask[row].sum()) for mask in compared.values()) for row in range(3)]


def test_informative_coordinates_are_counted() -> None:
    observed = erased(2)
    support = torch.stack([(value != 0).flatten(1).sum(1) for value in observed.values()])  # tensor, update
    whole = torch.tensor([[12], [3], [20], [4]]).expand(-1, 3)
    has = support > 0
    assert (support.sum(0) < ENTRIES).all()
    expected = {
        "gaussian": whole.sum(0),
        "cosine": whole.sum(0),
        "flat": 0 * whole.sum(0),
        "masked gaussian": support.sum(0),
        "masked cosine, one tensor": whole.sum(0) - 20 + support[2],
        "without": whole.sum(0) - 3,
        "partial": whole[:2].sum(0),
        "support": support.sum(0),
        "support of a part": support.sum(0) - support[2],
        "interval, nearest": (whole * has).sum(0),
        "sign": support.sum(0),
        "features": whole.sum(0),
        "features alone": 5 * (observed["fc.bias"] < 0).sum(1),
        "features of a part": whole[2:].sum(0),
    }
    assert not has[1, 0]
    for name, counts in expected.items():
        assert FORMS[name].likelihood.informative(observed).tolist() == counts.tolist(), name
    longest = torch.stack([value.square().flatten(1).sum(1) for value in observed.values()]).argmax(0)
    top = FORMS["partial, top laplace"].likelihood.informative(observed)
    assert top.tolist() == [whole[place, row] for row, place in enumerate(longest.tolist())]


def above(likelihood: Likelihood, old: Update, new: Update, observed: Update) -> Tensor:
    """By how much the parabola at `old` lies above the value at `new`, (U,)."""
    step = {key: new[key] - old[key] for key in old}
    rows, moved = jvp(lambda place: likelihood.residuals(place, observed), (old,), (step,))
    after = half_squares({key: rows[key] + moved[key] for key in rows})
    return likelihood(old, observed) + after - half_squares(rows) - likelihood(new, observed)


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(1e-3, 3.0), st.floats(1e-3, 1.0), st.floats(1e-3, 30.0))
def test_parabolas_lie_above(seed: int, scale: float, smoothing: float, step: float) -> None:
    """The majorization that makes reweighting descend: of Laplace noise, of pruning, of signs at a constant scale."""
    observed, old = erased(seed), update(seed + 1)
    new = {key: value + step * update(seed + 2)[key] for key, value in old.items()}
    for likelihood in (
        Laplace(scale=scale, smoothing=smoothing),
        Mixture(noise="gaussian", scale=scale, pruned=0.5),
    ):
        gap = above(likelihood, old, new, observed)
        assert (gap > -1e-9 * (1 + likelihood(new, observed) + likelihood(old, observed))).all()
    # Below the floor it is Huber's parabola, whose value differs from |d| by at most half the floor.
    assert (above(Laplace(scale=scale), old, new, observed) > -ENTRIES * 0.5e-3 - 1e-9 / scale).all()
    size = {
        key: value.square().flatten(1).mean(1).sqrt().reshape(-1, *[1] * (value.ndim - 1)) for key, value in old.items()
    }
    lengths = {
        key: value.square().flatten(1).mean(1).sqrt().reshape(-1, *[1] * (value.ndim - 1)) for key, value in new.items()
    }
    same = {key: value * size[key] / lengths[key] for key, value in new.items()}
    assert (above(Sign(), old, same, {key: value.sign() for key, value in observed.items()}) > -1e-9).all()


def test_the_floor_of_absolute_differences_follows_the_noise_and_the_update() -> None:
    """Its rows are those of |d| for updates of any size, and no weight is infinite where d is 0."""
    for size, scale in ((1e-6, 1.0), (1.0, 1e-6), (1.0, 1.0)):
        likelihood = Laplace(scale=scale)
        simulated, observed = ({key: size * value for key, value in update(seed).items()} for seed in (1, 2))
        rows, pull = vjp(lambda place: likelihood.residuals(place, observed), simulated)  # noqa: B023 - used at once
        assert_same(pull(rows)[0], slope(likelihood, simulated, observed))
        unit = {key: torch.ones_like(value) for key, value in observed.items()}
        _, bend = jvp(lambda place: likelihood.residuals(place, observed), (observed,), (unit,))  # noqa: B023
        typical = (sum(value.square().flatten(1).sum(1) for value in observed.values()) / ENTRIES).sqrt()
        weights = 1 / (scale * 1e-3 * typical.clamp_max(scale))
        torch.testing.assert_close(bend["fc.bias"].square(), weights[:, None].expand(3, 4))


def test_the_slope_reaches_the_images_of_a_network() -> None:
    """Forward over reverse: the rows of the update's Jacobian in the images, against autograd of the value."""
    batch, victim = batch_of(2, 2).to(torch.float64), small_victim().double()
    parameters = {name: value.detach() for name, value in victim.named_parameters()}

    def simulate(images: Tensor) -> Update:
        def loss(parameters: Update, images: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(functional_call(victim, parameters, (images,)), labels)

        return vmap(grad(loss), (None, 0, 0))(parameters, images, batch.labels)  # type: ignore[no-any-return]

    observed, start = simulate(batch.images), batch_of(2, 2, seed=1).images.double()
    directions = torch.randn(3, *start.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for likelihood in (Gaussian(sigma=0.1), Laplace(scale=0.1, smoothing=1e-3), Cosine(), Features(Gaussian())):

        def rows(images: Tensor, likelihood: Likelihood = likelihood) -> Tensor:
            found = likelihood.residuals(simulate(images), observed)
            return torch.cat([value.flatten() for value in found.values()])

        leaf = start.clone().requires_grad_()
        (expected,) = torch.autograd.grad(likelihood(simulate(leaf), observed).sum(), leaf)
        residual, pull = vjp(rows, start)
        torch.testing.assert_close(pull(residual)[0], expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
        products = vmap(lambda direction: jvp(rows, (start,), (direction,))[1])(directions)
        torch.testing.assert_close(
            products @ residual, (directions * expected).flatten(1).sum(1), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("likelihood", [Density(), CodeFromGradient(), Masked(Density())], ids=str)
def test_those_without_a_form_say_so(likelihood: Likelihood) -> None:
    who = "CodeFromGradient" if isinstance(likelihood, CodeFromGradient) else "Density"
    with pytest.raises(ConfigurationError, match=f"^{who} has no least-squares form; search it by Adam or L-BFGS.$"):
        likelihood.residuals(update(1), erased(2))
