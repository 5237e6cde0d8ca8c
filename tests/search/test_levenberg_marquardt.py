"""Levenberg-Marquardt: against a dense one, to the solution, and what it says of what cannot be solved."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim
from references.least_squares import jacobian
from references.least_squares import levenberg_marquardt as plain
from torch import Tensor

from gibench.attacks import GradientMatching, second_order
from gibench.clients import FedAvg, FedSGD
from gibench.errors import ConfigurationError, RefusalError
from gibench.labels import Given
from gibench.likelihoods import Cosine, Gaussian, Likelihood, Masked, Without
from gibench.likelihoods import Flat as NoInformation
from gibench.metrics import psnr
from gibench.priors import GaussianPixels, GroupConsistency, L2Norm, Prior, TotalVariation
from gibench.progress import Step, watching
from gibench.search import Ball, LevenbergMarquardt, Objective, Pixels
from gibench.search.conjugate_gradients import conjugate_gradients
from gibench.search.evaluation import Variables
from gibench.search.flat import Flat
from gibench.search.levenberg_marquardt import check_device
from gibench.search.linearization import Linearization
from gibench.search.preconditioners import Full, LowRank
from gibench.types import Batch, Observation
from gibench.victims import Victim, lenet


def matching(
    search: LevenbergMarquardt | None = None,
    *,
    likelihood: Likelihood | None = None,
    priors: tuple[Prior, ...] = (),
    labels: bool = True,
    restarts: int = 1,
    box: bool = False,
) -> GradientMatching:
    return GradientMatching(
        likelihood=likelihood or Gaussian(sigma=1.0),
        priors=priors,
        search=search or LevenbergMarquardt(),
        labels=Given() if labels else None,
        pixels=Pixels(start="uniform", box=box),
        restarts=restarts,
    )


def observed(updates: int, size: int = 1, victim: Victim | None = None) -> tuple[Batch, Observation]:
    """By default of a LeNet with 192 unknowns, each of which leaves a trace."""
    victim = victim or lenet(image_shape=(3, 8, 8))
    batch = batch_of(updates, size, side=victim.image_shape[1]).to(torch.float64)
    return batch, FedSGD(victim).double()(batch)


def quality(found: Tensor, batch: Batch) -> Tensor:
    return psnr(found.flatten(0, 1), batch.images.flatten(0, 1)).view(found.shape[:2])


def linearized(attack: GradientMatching, observation: Observation, *, single: bool = False) -> Linearization:
    objective, start = problem(attack, observation)
    flat = Flat(start, torch.float64)
    return Linearization(objective, 0, flat, flat.flatten(start)[0], single=single)


def problem(attack: GradientMatching, observation: Observation) -> tuple[Objective, Variables]:
    return attack.problem(observation, attack.posterior(observation).rows)


def dense(at: Linearization) -> Tensor:
    return jacobian(at._rows, at.point)


def test_every_image_is_found_to_the_last_digits_without_a_prior() -> None:
    batch, observation = observed(6)
    found = second_order()(observation)
    assert (quality(found.images, batch) == 100).all()
    assert found.remarks is None
    assert (found.objective < 1e-10).all()


def test_a_row_takes_the_steps_of_a_dense_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an inner solution to the last digits."""
    monkeypatch.setattr("gibench.search.damped_problem.FORCING", 1e-12)
    _, observation = observed(2, victim=lenet(image_shape=(3, 4, 4)))
    attack = matching(LevenbergMarquardt(steps=5, tolerance=0.0, single=False, buckets=None, refresh=1))
    objective, start = problem(attack, observation)
    seen: list[Tensor] = []
    with watching(lambda step: seen.append(step.images())):
        attack.search(objective, start)
    for row in range(2):
        flat = Flat(start, torch.float64)
        at = Linearization(objective, row, flat, flat.flatten(start)[row], single=False)
        expected = plain(lambda x, at=at: at._rows(x), at.point, steps=5, damping=1e-2)  # type: ignore[misc]
        for step, (_, point) in enumerate(expected):
            torch.testing.assert_close(seen[step][row].flatten(), point, rtol=1e-5, atol=1e-6)
        assert expected[-1][0] < 1e-3 * expected[0][0], "the case is too hard to say anything"


CASES: dict[str, Callable[[], GradientMatching]] = {
    "gaussian": matching,
    "soft labels": lambda: matching(labels=False),
    "cosine": lambda: matching(likelihood=Cosine()),
    "masked": lambda: matching(likelihood=Masked(Gaussian())),
    "priors": lambda: matching(
        priors=(TotalVariation(weight=0.3, smoothing=1e-2), GaussianPixels(), L2Norm(weight=0.1))
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_products_are_those_with_the_whole_jacobian(case: str) -> None:
    _, observation = observed(1, 2)
    at = linearized(CASES[case](), observation)
    whole = dense(at)
    source = torch.Generator().manual_seed(0)
    direction, change = (torch.randn(size, generator=source, dtype=torch.float64) for size in whole.T.shape)
    torch.testing.assert_close(at.push(direction), whole @ direction)
    torch.testing.assert_close(at.pull(change), change @ whole)
    torch.testing.assert_close(at.times(direction), whole.T @ (whole @ direction))


@pytest.mark.parametrize("case", CASES)
def test_the_slope_is_that_of_the_objective(case: str) -> None:
    """J^T r, of what is squared, against the derivative that first-order searches follow."""
    _, observation = observed(1, 2)
    objective, start = problem(CASES[case](), observation)
    flat = Flat(start, torch.float64)
    at = Linearization(objective, 0, flat, flat.flatten(start)[0], single=False)
    _, gradient = objective(start)
    torch.testing.assert_close(at.pull(at._rows(at.point)), flat.flatten(gradient)[0])


@pytest.mark.parametrize(("single", "tolerance"), [(False, 1e-12), (True, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_the_normal_matrix(case: str, single: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several passes and blocks, of sizes that do not divide."""
    monkeypatch.setattr("gibench.search.preconditioners.HELD", 3000 * 384)
    monkeypatch.setattr("gibench.search.preconditioners.AT_ONCE", 37)
    monkeypatch.setattr("gibench.search.preconditioners.BLOCK", 50)
    _, observation = observed(1, 2)
    at = linearized(CASES[case](), observation, single=single)
    whole = dense(at)
    expected = whole.T @ whole
    found = Full(at, double=not single, buckets=None)
    error = (found._matrix.double() - expected).abs().max() / expected.abs().max()
    assert found._matrix.dtype == (torch.float32 if single else torch.float64)
    assert error < tolerance
    solve, singular = found.inverse(1e-2)
    damped = expected + 1e-2 * torch.diag(found.scale)
    right = torch.ones_like(at.point)
    assert not singular
    torch.testing.assert_close(solve(right), torch.linalg.solve(damped, right), rtol=1e3 * tolerance, atol=1e-2)


def test_a_hashed_jacobian_and_one_of_low_rank_need_few_products() -> None:
    """Each is an inverse that a solution of the exact system takes fewer products with."""
    _, observation = observed(1, 2)
    at = linearized(matching(), observation)
    whole = dense(at)
    damping = 1e-4
    matrix = whole.T @ whole
    counts = {}
    makers: dict[str, Any] = {
        "full": Full(at, double=True, buckets=None),
        "hashed": Full(at, double=True, buckets=3.0),
        "low rank": LowRank(at, rank=80, seed=3),
        "whole rank": LowRank(at, rank=at.unknowns, seed=3),
    }
    for name, made in makers.items():
        system = matrix + damping * torch.diag(made.scale)
        inverse, _ = made.inverse(damping)
        right = torch.ones_like(at.point)
        solution = conjugate_gradients(
            lambda d, system=system: system @ d, right, inverse, tolerance=1e-8, iterations=500
        )
        assert solution.converged
        torch.testing.assert_close(solution.x, torch.linalg.solve(system, right), rtol=1e-4, atol=1e-4)
        counts[name] = solution.iterations
    system = matrix + damping * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)
    alone = conjugate_gradients(
        lambda d: system @ d, torch.ones_like(at.point), lambda d: d, tolerance=1e-8, iterations=2000
    )
    assert counts["full"] <= 2
    assert counts["whole rank"] <= 5
    assert counts["hashed"] < alone.iterations / 3
    assert counts["low rank"] < alone.iterations / 1.5


@pytest.mark.parametrize("settings", [{"normal": "low_rank", "rank": 30}, {"buckets": 2.0}, {"refresh": 1}])
def test_how_the_factor_is_made_changes_no_answer(settings: dict[str, Any]) -> None:
    batch, observation = observed(2)
    found = matching(LevenbergMarquardt(**settings))(observation)
    assert (quality(found.images, batch) > 80).all()


def test_soft_labels_are_searched_too() -> None:
    """With pixels in one vector, each in its own units."""
    batch, observation = observed(2)
    found = matching(LevenbergMarquardt(steps=25), labels=False)(observation)
    assert quality(found.images, batch).max() > 60
    assert found.labels is not None
    assert (found.labels == batch.labels).any()


def test_a_client_of_several_steps_is_served_in_the_type_of_the_run() -> None:
    client = FedAvg(lenet(image_shape=(3, 8, 8)), steps=2, local_batch_size=1, rate=0.01).double()
    batch = batch_of(1, 2).to(torch.float64)
    few, many = (second_order(steps=steps)(client(batch)) for steps in (1, 12))
    assert many.objective < 1e-3 * few.objective


def test_products_are_counted() -> None:
    _, observation = observed(1)
    found = matching(LevenbergMarquardt(steps=1, buckets=None))(observation)
    start, columns, products, target = 1, 192, 2 + 2, 1
    assert int(found.gradient_evaluations) == start + columns + products + target


def test_total_variation_fills_what_the_update_leaves_open() -> None:
    """36 of the 192 directions leave no trace in the update of this victim."""
    batch, observation = observed(3, victim=small_victim())
    priors = (TotalVariation(weight=1e-4, smoothing=1e-2),)
    without, with_prior = (matching(priors=each)(observation) for each in ((), priors))
    assert quality(with_prior.images, batch).mean() > quality(without.images, batch).mean()


def test_a_prior_of_weight_zero_is_none() -> None:
    _, observation = observed(1)
    blind = {name: torch.zeros_like(value) for name, value in observation.update.items()}
    priors = (TotalVariation(weight=0.0, smoothing=1e-2),)
    attack = matching(likelihood=Masked(Gaussian()), priors=priors)
    refused = attack(observation.model_copy(update={"update": blind})).refused
    assert refused is not None
    assert "null space" in (refused[0] or "")


def test_a_prior_alone_is_searched_to_its_mode() -> None:
    _, observation = observed(1)
    found = matching(likelihood=NoInformation(), priors=(GaussianPixels(mean=0.25),))(observation)
    assert torch.allclose(found.images, torch.tensor(0.25, dtype=torch.float64), atol=1e-6)


def test_an_anchor_balances_the_residual_with_the_distance_from_the_start() -> None:
    _, observation = observed(1)
    attack = second_order(search=LevenbergMarquardt(anchor=1e-4), start="near_gray")
    objective, start = problem(attack, observation)
    flat, points = Flat(start, torch.float64), []
    with watching(lambda step: points.append(step.images().flatten())):
        attack(observation)
    first, last = flat.flatten(start)[0], points[-1]
    _, slope = objective(flat.unflatten(last[None]), None)
    pulled = last - first
    assert torch.cosine_similarity(flat.flatten(slope)[0], -pulled, dim=0) > 0.999
    assert pulled.norm() > 1


def test_an_anchor_that_is_let_go_of_leaves_a_determined_image_exact() -> None:
    batch, observation = observed(2)
    found = second_order(search=LevenbergMarquardt(anchor=1e-12))(observation)
    assert (quality(found.images, batch) > 60).all()
    assert found.remarks is None


def test_fewer_coordinates_than_unknowns_are_refused_and_the_null_space_is_named() -> None:
    _, observation = observed(2)
    few = Without(
        Gaussian(),
        tensors=["network.conv2.weight", "network.conv3.weight", "network.fc.weight", "network.conv1.weight"],
    )
    found = matching(likelihood=few)(observation)
    assert found.refused is not None
    assert all("null space of at least" in (reason or "") for reason in found.refused)
    assert found.images.isnan().all()
    assert found.gradient_evaluations.max() == 1, "nothing but the start is computed"
    served = matching(LevenbergMarquardt(steps=3), likelihood=few, priors=(GaussianPixels(),))(observation)
    assert served.refused is None
    assert served.images.isfinite().all()


def test_one_masked_update_of_a_group_is_refused_alone() -> None:
    batch, observation = observed(2)
    update = {name: value.clone() for name, value in observation.update.items()}
    for value in update.values():
        value[1] = 0
    found = matching(likelihood=Masked(Gaussian()))(observation.model_copy(update={"update": update}))
    assert found.refused is not None
    assert found.refused[0] is None
    assert "null space" in (found.refused[1] or "")
    assert (quality(found.images[:1], batch.model_copy(update={"images": batch.images[:1]})) > 60).all()


def test_a_singular_system_is_damped_and_reported() -> None:
    """36 of the 192 directions leave no trace, and next to no damping hides it."""
    _, observation = observed(1, victim=small_victim())
    found = matching(LevenbergMarquardt(steps=5, damping=1e-30))(observation)
    assert found.remarks is not None
    assert "singular to working precision in" in (found.remarks[0] or "")
    assert found.images.isfinite().all()


def test_an_update_that_does_not_depend_on_the_images_is_reported() -> None:
    victim = small_victim()
    with torch.no_grad():
        for layer in (victim.network[0], victim.network[3]):  # type: ignore[index]
            layer.weight.zero_()  # type: ignore[union-attr,operator]
    _, observation = observed(1, victim=victim)
    found = second_order(steps=5)(observation)
    assert found.remarks == ("the derivative at the start is zero",)
    assert found.images.isfinite().all()


@pytest.mark.parametrize("product", ["push", "pull", "columns"])
def test_products_that_are_not_finite_end_a_row_with_its_best_and_a_remark(
    product: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the third point on."""
    batch, observation = observed(2)
    original = getattr(Linearization, product)
    points: set[int] = set()

    def broken(self: Linearization, vectors: Tensor) -> Any:
        points.add(id(self.point))
        found = original(self, vectors)
        late = len(points) > 4
        if product == "columns":
            return {name: value * (torch.nan if late else 1.0) for name, value in found.items()}
        return found * (torch.nan if late else 1.0)

    monkeypatch.setattr(Linearization, product, broken)
    found = matching(LevenbergMarquardt(refresh=1))(observation)
    assert found.remarks is not None
    assert all("was not finite" in (remark or "") for remark in found.remarks)
    assert found.images.isfinite().all()
    assert (quality(found.images, batch) > 15).all(), "two steps were taken"


@pytest.mark.parametrize("damping", [1e5, 1e-8])
def test_the_damping_at_the_start_is_only_a_start(damping: float) -> None:
    """Steps that are short because they are damped are no sign of an optimum."""
    batch, observation = observed(2)
    found = matching(LevenbergMarquardt(damping=damping))(observation)
    assert (quality(found.images, batch) == 100).all()


def test_what_is_still_moving_is_said() -> None:
    _, observation = observed(1)
    assert second_order(steps=1)(observation).remarks == ("still moving after 1 steps",)


def test_a_start_that_is_not_finite_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, observation = observed(2)
    original = Pixels.start

    def start(*arguments: Any) -> Tensor:
        images = original(*arguments)
        images[1] = torch.nan
        return images

    monkeypatch.setattr(Pixels, "start", start)
    found = second_order()(observation)
    assert found.images[1].isnan().all()
    assert found.remarks is not None
    assert "start is not finite" in (found.remarks[1] or "")
    assert quality(found.images, batch)[0] == 100


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LevenbergMarquardt(steps=0), "steps, rank, refresh and inner >= 1"),
        (lambda: LevenbergMarquardt(damping=0.0), "damping > 0"),
        (lambda: LevenbergMarquardt(anchor=1.0), "at most the damping"),
        (lambda: LevenbergMarquardt(buckets=1.0), "more than 1 for each unknown"),
        (lambda: LevenbergMarquardt(normal="diagonal"), "choose one of full, low_rank"),  # type: ignore[arg-type]
        (lambda: second_order(steps=3, search=LevenbergMarquardt()), "steps are those of the search"),
        (lambda: matching(priors=(GroupConsistency(weight=1.0),), restarts=2), "search by Adam"),
        (
            lambda: GradientMatching(
                likelihood=Gaussian(), search=LevenbergMarquardt(), labels=Given(), ball=Ball(radius=0.1)
            ),
            "a fixed sum of squares",
        ),
    ],
)
def test_bad_settings(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build()


def test_a_prior_without_a_least_squares_form_is_named() -> None:
    _, observation = observed(1)
    with pytest.raises(ConfigurationError, match="smoothed total variation"):
        matching(priors=(TotalVariation(weight=0.1),))(observation)


def test_mixed_precision_is_refused() -> None:
    client = FedSGD(small_victim(side=6))
    observation = client(batch_of(1, 1, side=6))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RefusalError, match="not rounded"):
        second_order()(observation)


def test_a_device_without_float64_is_refused() -> None:
    check_device(torch.device("cpu"))
    with pytest.raises(RefusalError, match="use --accelerator cpu"):
        check_device(torch.device("mps"))


def test_float32_reaches_what_its_rounding_allows() -> None:
    client = FedSGD(lenet(image_shape=(3, 8, 8)))
    batch = batch_of(3, 1)
    found = second_order()(client(batch))
    assert (quality(found.images, batch) > 40).all()


def test_each_step_is_reported_with_all_rows() -> None:
    _, observation = observed(2)
    steps: list[Step] = []
    with watching(steps.append):
        second_order(steps=4)(observation)
    assert [step.done for step in steps] == [1, 2, 3, 4]
    assert all(step.objective.shape == (2,) and step.images().shape[0] == 2 for step in steps)
    assert (steps[-1].objective < steps[0].objective).all()
