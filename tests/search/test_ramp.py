"""The ramp of the likelihood's factor, the schedule that goes with it, and hidden numbers, drawn or searched."""

import math
from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim
from torch import Tensor

from gibench.attacks import GradientMatching, bayes_optimal
from gibench.clients import FedSGD
from gibench.engine.backends import GenericBackend
from gibench.errors import ConfigurationError
from gibench.labels import Given
from gibench.likelihoods import Gaussian, Hidden, Hypothesis, Likelihood
from gibench.priors import Prior
from gibench.progress import watching
from gibench.search import Adam, Ball, Objective, Ramp
from gibench.search.evaluation import BALL, Evaluation, Guess, Variables
from gibench.types import Observation, Update


def test_the_factor_grows_geometrically_and_stays() -> None:
    ramp = Ramp(start=0.01, end=4.0, steps=10)
    assert ramp(0) == pytest.approx(0.01)
    assert ramp(5) == pytest.approx(math.sqrt(0.01 * 4.0))
    assert [ramp(step + 1) / ramp(step) for step in range(10)] == pytest.approx([400**0.1] * 10)
    assert {ramp(step) for step in (10, 11, 1000)} == {4.0}
    assert {Ramp(start=2.0, end=2.0, steps=3)(step) for step in range(5)} == {2.0}
    assert Ramp(start=2.0, end=0.5, steps=2)(1) == pytest.approx(1.0)


class Half(Prior):
    """The square distance of the pixels from 1/2."""

    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        return (images - 0.5).square().flatten(1).sum(1)


def observe(updates: int = 2) -> Observation:
    return FedSGD(small_victim()).double()(batch_of(updates, 1).to(torch.float64))


def objective() -> tuple[Objective, Variables]:
    """One likelihood term, the square distance from 1, against one prior: the optimum is (w + 1/2) / (w + 1)."""

    def simulate(images: Tensor, _labels: Tensor) -> Update:
        return {"w": images.flatten(1)}

    observation = observe().model_copy(update={"simulate": simulate, "update": {"w": torch.ones(2, 192).double()}})
    built = Objective(
        observation,
        [0, 1],
        backend=GenericBackend(simulate),
        likelihood=Gaussian(),
        priors=[Half()],
        decode=lambda variables, _: Guess(variables["pixels"], torch.zeros(len(variables["pixels"]), 1)),
        project=lambda variables: variables,
        labels=None,
    )
    return built, {"pixels": torch.full((2, 1, 3, 8, 8), 0.55, dtype=torch.float64)}


def test_the_factor_is_on_the_likelihood_alone() -> None:
    problem, point = objective()
    problem.reweigh(0.25)
    found, match = problem.evaluate(point, problem.known())
    likelihood, prior = 192 * 0.45**2, 192 * 0.05**2
    torch.testing.assert_close(match, torch.full_like(match, likelihood))
    torch.testing.assert_close(found.value, torch.full_like(match, 0.25 * likelihood + prior))
    expected = 2 * (0.25 * -0.45 + 0.05)
    torch.testing.assert_close(found.gradient["pixels"], torch.full_like(point["pixels"], expected))


def test_only_iterates_under_the_final_factor_are_compared() -> None:
    """Their least value is the answer, though those under the first factors, near the prior's optimum, were lower."""
    problem, start = objective()
    values, points = [], []

    def watch(step: Any) -> None:
        values.append(step.objective.clone())
        points.append(problem.best["pixels"].clone())

    with watching(watch):
        Adam(steps=12, rate=0.01, schedule="constant", ramp=Ramp(start=0.01, steps=5))(problem, start)
    history = torch.stack(values)
    assert (history[:5].amin(0) < history[5:].amin(0)).all()
    assert torch.equal(problem.value, history[5:].amin(0))
    assert problem.evaluations.tolist() == [12, 12]
    torch.testing.assert_close(problem.evaluate(problem.best, problem.known())[0].value, problem.value)
    assert float(problem.weight) == 1.0


def test_each_iterate_is_weighed_by_its_own_factor() -> None:
    """Against the same search by hand."""
    ramp, start = Ramp(start=0.1, end=2.0, steps=4), objective()[1]["pixels"]
    point = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([point], lr=0.05)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.05 * 0.9**step
        optimizer.zero_grad()
        (ramp(step) * (point - 1).square().sum() + (point - 0.5).square().sum()).backward()
        optimizer.step()
    problem, variables = objective()
    last: list[Tensor] = []
    search = Adam(steps=6, rate=0.05, schedule="exponential", decay=0.9, ramp=ramp)
    with watching(lambda step: last.append(step.images().clone())):
        search(problem, variables)
    torch.testing.assert_close(last[-1], point.detach())


def test_the_same_factor_again_forgets_nothing_whatever_its_precision() -> None:
    problem, point = objective()
    problem.weight = problem.weight.float()
    problem.reweigh(0.3)  # not a number of single precision
    problem(point)
    kept = problem.value.clone()
    problem.reweigh(0.3)
    assert torch.equal(problem.value, kept)
    problem.reweigh(0.4)
    assert problem.value.isinf().all()


def test_no_row_finishes_under_a_factor_that_is_not_the_final_one() -> None:
    """Under the first factors, the values lie below any target."""
    observation = observe()
    settings = {"steps": 130, "ramp": Ramp(start=1e-9, steps=100)}
    searches = (Adam(**settings), Adam(**settings, target=1e-3))  # type: ignore[arg-type]
    found = [GradientMatching(likelihood=Gaussian(), search=each, labels=Given())(observation) for each in searches]
    assert (found[1].gradient_evaluations > 100).all()
    assert (found[1].objective < 10 * found[0].objective + 1e-3).all()


def test_the_exponential_schedule_decays_by_one_factor() -> None:
    search = Adam(steps=9, schedule="exponential", decay=0.97)
    assert [search.factor(step) for step in range(3)] == pytest.approx([1.0, 0.97, 0.97**2])
    assert Adam(steps=9, schedule="exponential").factor(8) == 1.0


def test_a_row_with_a_ramp_is_the_same_alone() -> None:
    attack, observation = bayes_optimal(steps=8, ramp_steps=3, restarts=2), observe(3)
    together, alone = attack(observation), attack(observation.select([1]))
    torch.testing.assert_close(alone.images[0], together.images[1], rtol=1e-6, atol=1e-6)


NAN = float("nan")


def test_bad_settings_are_named() -> None:
    for settings in ({"start": 0.0}, {"start": 1.0, "end": -1.0}, {"start": 1.0, "steps": 0}, {"start": NAN}):
        with pytest.raises(ConfigurationError, match="all must be positive"):
            Ramp(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="the ramp takes 5 of 5 steps"):
        Adam(steps=5, ramp=Ramp(start=0.1, steps=5))
    for decay, schedule in ((0.0, "exponential"), (1.1, "exponential"), (NAN, "exponential"), (0.9, "step")):
        with pytest.raises(ConfigurationError, match="decay is"):
            Adam(steps=5, decay=decay, schedule=schedule)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="'searched' or 'drawn'"):
        GradientMatching(likelihood=Gaussian(), search=Adam(steps=1), labels=Given(), hidden="known")  # type: ignore[arg-type]


class Shifted(Likelihood):
    """The distance of updates of images that somebody shifted by a tenth of hidden numbers, one for each channel."""

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        distance: Tensor = Gaussian()(simulated, observed)
        return distance

    def hypothesis(self, observation: Observation) -> Hypothesis:
        def simulate(images: Tensor, labels: Tensor, *, shift: Tensor) -> Update:
            return observation.simulate(images + 0.1 * shift[..., None, None], labels)

        return Hypothesis(self, observation.model_copy(update={"simulate": simulate}), hidden=Hidden("shift", (3,)))


def shifted(hidden: Any, **settings: Any) -> GradientMatching:
    search = Adam(steps=settings.pop("steps", 6), rate=0.05, schedule="constant")
    return GradientMatching(likelihood=Shifted(), search=search, labels=Given(), hidden=hidden, **settings)


@pytest.mark.parametrize("hidden", ["drawn", "searched"])
def test_a_hidden_number_is_drawn_for_each_evaluation_or_searched(hidden: str) -> None:
    observation = observe()
    problem, start = shifted(hidden, restarts=2).problem(observation, [(0, 0), (1, 0), (0, 1), (1, 1)])
    draws = [problem.known().draws]
    values: list[Evaluation] = [problem(start)]
    draws.append(problem.known().draws)
    values.append(problem(start))
    if hidden == "drawn":
        assert set(start) == {"pixels"}
        assert draws[0]["shift"].shape == (4, 1, 3)
        assert len(torch.cat([draw["shift"] for draw in draws]).unique()) == 24
        assert (values[0].value != values[1].value).all()
        with_shift = start, draws[0]["shift"]
    else:
        assert torch.equal(start["shift"], torch.zeros(4, 1, 3, dtype=torch.float64))
        assert draws == [{}, {}]
        assert (values[0].gradient["shift"].abs() > 0).all()
        torch.testing.assert_close(values[0].value, values[1].value)
        with_shift = start, start["shift"]
    images = problem.decode(with_shift[0]).images + 0.1 * with_shift[1][..., None, None]
    labels = observation.labels[[0, 0, 1, 1]]  # type: ignore[index]
    observed = {name: value[[0, 0, 1, 1]] for name, value in observation.update.items()}
    torch.testing.assert_close(values[0].value, Gaussian()(observation.simulate(images, labels), observed))


@pytest.mark.parametrize("hidden", ["drawn", "searched"])
def test_rows_with_hidden_numbers_are_the_same_alone(hidden: str) -> None:
    observation, attack = observe(3), shifted(hidden, restarts=2)
    together, alone = attack(observation), attack(observation.select([2]))
    torch.testing.assert_close(alone.images[0], together.images[2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alone.objective[0], together.objective[2], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("hidden", ["drawn", "searched"])
def test_hidden_numbers_go_with_a_ball(hidden: str) -> None:
    """All points of an evaluation share them."""
    observation = observe()
    rows = [(0, 0), (0, 1)]
    problem, start = shifted(hidden, ball=Ball(radius=0.5, samples=3)).problem(observation, rows)
    plain, _ = shifted(hidden).problem(observation, rows)
    known, std = problem.known(), small_victim().double().std
    expected = torch.stack(
        [
            plain.evaluate({**start, "pixels": start["pixels"] + known.draws[BALL][:, sample] / std}, plain.known())[1]
            for sample in range(3)
        ]
    ).mean(0)
    torch.testing.assert_close(problem.evaluate(start, known)[1], expected)
    assert shifted(hidden, ball=Ball(radius=0.5, samples=3))(observation).images.isfinite().all()
