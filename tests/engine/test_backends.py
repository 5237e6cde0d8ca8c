"""The three back ends against one update after the other, on random nets; their refusals, and low precision."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import pytest
import torch
from helpers import batch_of, small_victim
from hypothesis import HealthCheck, example, given, settings
from references import updates as reference
from references.problems import Problem, grouped, problems
from torch import Tensor

from gibench.clients import FedAvg
from gibench.engine import rules
from gibench.engine.backends import BACKENDS, Backend, GramBackend, RulesBackend, build
from gibench.engine.gradient import LocalGradient
from gibench.errors import BackendError, ShapeError
from gibench.likelihoods import Cosine, Gaussian, Likelihood, Mixture
from gibench.likelihoods.products import inner
from gibench.types import Update

LIKELIHOODS = [Cosine(), Gaussian(), Mixture(noise="gaussian", scale=0.1, pruned=0.5)]


def flat(update: Update) -> Tensor:
    """(U, everything), by the names in order."""
    return torch.cat([update[name].flatten(1) for name in sorted(update)], 1)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Norm-wise, row by row, so that no update hides behind another; below 1e-3 the error counts in itself."""
    assert found.shape == expected.shape
    error = (found - expected).flatten(1).norm(dim=1)
    limit = tolerance * expected.flatten(1).norm(dim=1).clamp_min(1e-3)
    assert (error <= limit).all(), f"off by {error.tolist()}, at most {limit.tolist()}"


def repeat(update: Update, rows: int) -> Update:
    return {name: value.repeat_interleave(rows // len(value), 0) for name, value in update.items()}


def squares(update: Update) -> Update:
    return {name: inner(value, value) for name, value in update.items()}


def evaluate(backend: Backend, likelihood: Likelihood, images: Tensor, labels: Tensor, observed: Update) -> Tensor:
    known = observed if backend.shares_restarts else repeat(observed, len(images))
    return backend(likelihood, images, labels, known, squares(known))


def serve(likelihood: Likelihood) -> list[str]:
    return [name for name in BACKENDS if name != "gram" or likelihood.reads == "products"]


@contextmanager
def gram_matrices(problem: Problem) -> Iterator[None]:
    """Take the way of the problem."""
    with ExitStack() as stack:
        for room in (rules.linear, rules.convolution):
            stack.enter_context(patch.object(room, "gram_is_cheaper", lambda *_: problem.gram))
        yield


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
@example(grouped())
def test_every_back_end_is_the_slow_reference(problem: Problem) -> None:
    """Updates, inner products, distances and their derivatives, in float64; restarts are shared where that is said."""
    images, labels, observed = problem.tensors()
    expected = reference.updates(problem.plain, images, labels, scale=problem.scale)
    simulate = LocalGradient(problem.victim(), scale=problem.scale)
    for found in (simulate(images, labels), RulesBackend(simulate).update(images, labels)):
        assert found.keys() == expected.keys()
        assert_close(flat(found), flat(expected))
    with gram_matrices(problem):
        products = GramBackend(simulate).products(images, labels, observed, squares(observed))
        known = repeat(observed, len(images))
        cross = {name: inner(value, known[name]) for name, value in expected.items()}
        wanted = (cross, squares(expected), squares(known))
        for part, whole in zip(products, wanted, strict=True):
            for name, value in whole.items():
                torch.testing.assert_close(part[name], value, rtol=1e-9, atol=1e-11)
        variables = [images, labels] if labels.is_floating_point() else [images]
        for likelihood in LIKELIHOODS:
            value = reference.objective(likelihood, expected, observed)
            derivatives = torch.autograd.grad(value.sum(), variables, retain_graph=True)
            for name in serve(likelihood):
                found_value = evaluate(build(name, simulate, likelihood), likelihood, images, labels, observed)
                assert_close(found_value[:, None], value[:, None])
                for left, right in zip(torch.autograd.grad(found_value.sum(), variables), derivatives, strict=True):
                    assert_close(left, right)


class Largest(Likelihood):
    """A distance that no inner product tells: the largest difference."""

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        return flat({name: simulated[name] - observed[name] for name in observed}).abs().amax(1)


def test_the_rules_serve_distances_that_read_the_update() -> None:
    victim, batch = small_victim().double(), batch_of(3, 2).to(torch.float64)
    images, observed = batch.images.requires_grad_(), reference.updates(victim, *others(batch.images))
    value = reference.objective(Largest(), reference.updates(victim, images, batch.labels), observed)
    for name in ("generic", "rules"):
        found = build(name, LocalGradient(victim), Largest())(
            Largest(), images, batch.labels, observed, squares(observed)
        )
        assert_close(found[:, None], value[:, None])
        derivatives = (torch.autograd.grad(each.sum(), images, retain_graph=True)[0] for each in (found, value))
        assert_close(*derivatives)


def others(images: Tensor) -> tuple[Tensor, Tensor]:
    """Other images and labels, of which the observed updates are made."""
    return images.detach().flip(-1), torch.zeros(images.shape[:2], dtype=torch.int64)


@pytest.mark.parametrize("name", ["rules", "gram"])
def test_faster_back_ends_serve_one_gradient_only(name: str) -> None:
    client = FedAvg(small_victim(), steps=2)
    with pytest.raises(BackendError, match=f"{name}.*this client does more"):
        build(name, client.attacker_simulate(), Cosine())
    whole = FedAvg(small_victim(), steps=1, rate=0.1)
    assert isinstance(build(name, whole.attacker_simulate(), Cosine()), BACKENDS[name])


def test_gram_refuses_what_reads_the_update() -> None:
    with pytest.raises(BackendError, match="Largest is none"):
        build("gram", LocalGradient(small_victim()), Largest())


@pytest.mark.parametrize("shape", [(0, 2, 3, 8, 8), (2, 0, 3, 8, 8), (2, 2, 3, 0, 8), (2, 3, 8, 8)])
@pytest.mark.parametrize("name", BACKENDS)
def test_images_of_no_size_are_refused(name: str, shape: tuple[int, ...]) -> None:
    backend = build(name, LocalGradient(small_victim()), Cosine())
    observed = {key: value[None] for key, value in small_victim().named_parameters()}
    labels = torch.zeros(shape[:2], dtype=torch.int64)
    with pytest.raises(ShapeError, match="none of them zero"):
        backend(Cosine(), torch.zeros(shape), labels, observed, squares(observed))


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("precision", ["float32", "autocast"])
def test_single_and_half_precision_give_about_the_same(name: str, likelihood: Likelihood, precision: str) -> None:
    """On a smooth net. With ReLU, rounding moves activations across zero, where derivatives jump by any amount."""
    if name not in serve(likelihood):
        pytest.skip(f"{name} does not serve {type(likelihood).__name__}")
    batch, victim, exact = batch_of(3, 2), small_victim(), small_victim().double()
    images = batch.images.requires_grad_()
    observed = reference.updates(exact, *others(images.double()))
    value = reference.objective(likelihood, reference.updates(exact, images.double(), batch.labels), observed)
    low = {key: tensor.float() for key, tensor in observed.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        found = build(name, LocalGradient(victim), likelihood)(likelihood, images, batch.labels, low, squares(low))
    (derivative,) = torch.autograd.grad(found.sum(), images)
    assert found.dtype == derivative.dtype == torch.float32
    assert derivative.isfinite().all()
    assert_close(found.double()[:, None], value[:, None], 1e-5 if precision == "float32" else 2e-2)


@pytest.mark.parametrize("name", BACKENDS)
def test_batch_norm_in_half_precision(name: str) -> None:
    """By running statistics, which stay in float32."""
    batch, victim = batch_of(3, 2), small_victim(batch_norm=True).eval()
    observed = {key: value.detach() for key, value in reference.updates(victim, *others(batch.images)).items()}
    value = reference.objective(Cosine(), reference.updates(victim, batch.images, batch.labels), observed)
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(build(name, LocalGradient(victim), Cosine()), Cosine(), batch.images, batch.labels, observed)
    assert_close(found[:, None], value[:, None], 2e-2)
