"""The ball: uniform points, the mean over them, and the term that they add to a Gaussian likelihood."""

import math
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from helpers import batch_of, small_victim
from scipy import stats
from torch import Tensor, nn

from gibench.attacks import GradientMatching, bayes_optimal
from gibench.clients import FedSGD
from gibench.defenses import GaussianNoise
from gibench.engine import Engine
from gibench.engine.backends import GenericBackend
from gibench.errors import ConfigurationError
from gibench.likelihoods import Gaussian
from gibench.search import Ball, Objective
from gibench.search.evaluation import BALL, Guess
from gibench.types import Observation, ThreatModel, Update

RARE = 1e-4


def points(shape: tuple[int, ...], *, count: int = 4000, radius: float = 0.7) -> Tensor:
    """(count, *shape), half of them of one row's evaluations."""
    ball, half = Ball(radius=radius, samples=2), count // 4
    seeds, evaluations = [*[3] * half, *range(half)], [*range(half), *[5] * half]
    return ball.draw(shape, seeds, evaluations).flatten(0, 1)


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 4), (1, 3, 16, 16)])
def test_the_radius_has_the_law_of_uniform_points(shape: tuple[int, ...]) -> None:
    """The share of the volume within is uniform; a radius that is itself uniform is told from it."""
    size = math.prod(shape)
    radii = points(shape).flatten(1).norm(dim=1).numpy() / 0.7
    assert radii.max() <= 1 + 1e-12
    assert stats.kstest(radii**size, "uniform").pvalue > RARE
    if size > 1:
        assert stats.kstest(radii, "uniform").pvalue < RARE


def test_directions_are_uniform() -> None:
    """Of a sphere in three dimensions each coordinate is uniform (Archimedes); in more, moments are those of all."""
    drawn = points((3,))
    unit = drawn / drawn.norm(dim=1, keepdim=True)
    for axis in range(3):
        assert stats.kstest((unit[:, axis].numpy() + 1) / 2, "uniform").pvalue > RARE
    angle = np.arctan2(unit[:, 0].numpy(), unit[:, 1].numpy())
    assert stats.kstest(angle / (2 * math.pi) + 0.5, "uniform").pvalue > RARE
    radii = drawn.norm(dim=1)
    assert abs(stats.spearmanr(radii.numpy(), angle).statistic) < 4 / math.sqrt(len(radii))
    size, drawn = 12, points((2, 2, 3), count=20_000).flatten(1)
    moments = drawn.T @ drawn / len(drawn)
    expected = 0.7**2 / (size + 2) * torch.eye(size, dtype=torch.float64)  # E[d d^T]
    torch.testing.assert_close(moments, expected, rtol=0, atol=0.05 * 0.7**2 / (size + 2))


def test_points_depend_on_the_seed_and_the_evaluation_alone() -> None:
    ball, shape = Ball(radius=0.2, samples=3), (2, 3)
    together = ball.draw(shape, [7, 8, 7], [0, 0, 4])
    assert together.shape == (3, 3, 2, 3)
    for row, (seed, evaluation) in enumerate([(7, 0), (8, 0), (7, 4)]):
        assert torch.equal(ball.draw(shape, [seed], [evaluation])[0], together[row])
    assert len({float(value) for value in together.flatten()}) == together.numel()
    doubled = Ball(radius=0.4, samples=3).draw(shape, [7], [0])
    torch.testing.assert_close(doubled[0], 2 * together[0])


def observe(updates: int = 2) -> Observation:
    client = FedSGD(small_victim(), defense=GaussianNoise(sigma=0.01)).double()
    return client(batch_of(updates, 1).to(torch.float64))


def attack(ball: Ball | None = None, **settings: Any) -> GradientMatching:
    return bayes_optimal(**{"steps": 6, "ramp_steps": 2, "ball": ball, **settings})


@pytest.mark.parametrize("backend", ["generic", "rules", "gram"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_an_evaluation_is_the_mean_of_those_at_the_points(backend: Any, restarts: int) -> None:
    """Values, likelihood terms and derivatives, for restarts that share what is observed, too."""
    observation, engine = observe(), Engine(backend=backend, compile="off")
    rows = [(restart, update) for update in range(2) for restart in range(restarts)]
    judged, start = attack(Ball(radius=2.0, samples=4), restarts=restarts, engine=engine).problem(observation, rows)
    plain, same = attack(restarts=restarts, engine=engine).problem(observation, rows)
    assert torch.equal(start["pixels"], same["pixels"])
    known = judged.known()
    moves = known.draws[BALL] / small_victim().double().std
    found, match = judged.evaluate(start, known)
    points = [plain.evaluate({"pixels": start["pixels"] + moves[:, sample]}, plain.known()) for sample in range(4)]
    torch.testing.assert_close(found.value, torch.stack([each.value for each, _ in points]).mean(0))
    torch.testing.assert_close(match, torch.stack([each for _, each in points]).mean(0))
    slopes = torch.stack([each.gradient["pixels"] for each, _ in points]).mean(0)
    torch.testing.assert_close(found.gradient["pixels"], slopes)
    assert not torch.allclose(found.value, plain.evaluate(start, plain.known())[0].value, rtol=1e-6)


def test_each_evaluation_has_points_of_its_own() -> None:
    objective, start = attack(Ball(radius=1.0, samples=2)).problem(observe(), [(0, 0), (0, 1)])
    values = [objective(start).value for _ in range(3)]
    assert all((values[0] != value).all() for value in values[1:])
    again, _ = attack(Ball(radius=1.0, samples=2)).problem(observe(), [(0, 0), (0, 1)])
    assert all(torch.equal(again(start).value, value) for value in values)


def test_no_radius_is_no_ball() -> None:
    """To the bit, whatever the number of samples."""
    observation = observe()
    found = [attack(ball)(observation) for ball in (None, Ball(), Ball(radius=0.0, samples=9))]
    for other in found[1:]:
        assert torch.equal(found[0].images, other.images)
        assert torch.equal(found[0].objective, other.objective)
    wide = attack(Ball(radius=3.0))(observation)
    assert not torch.equal(found[0].images, wide.images)


def test_rows_search_alone_with_a_ball() -> None:
    observation, ball = observe(3), Ball(radius=1.0, samples=2)
    together = attack(ball, restarts=2)(observation)
    alone = attack(ball, restarts=2)(observation.select([2]))
    torch.testing.assert_close(alone.images[0], together.images[2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alone.objective[0], together.objective[2], rtol=1e-6, atol=1e-8)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler, which torch.compile needs on a CPU")
def test_a_compiled_search_with_ball_and_ramp_is_the_search() -> None:
    observation, found = observe(), {}
    for mode in ("off", "on"):
        found[mode] = attack(Ball(radius=1.0, samples=2), engine=Engine(compile=mode))(observation)
    assert found["on"].backend == "generic, compiled"
    torch.testing.assert_close(found["on"].images, found["off"].images, rtol=0, atol=1e-9)
    torch.testing.assert_close(found["on"].objective, found["off"].objective, rtol=1e-9, atol=0)


def linear(matrix: Tensor, point: Tensor, sigma: float, ball: Ball) -> Objective:
    """Of the updates g(x) = A x, observed off the point."""

    def simulate(images: Tensor, _labels: Tensor) -> Update:
        return {"w": images.flatten(1) @ matrix.T}

    observation = Observation(
        update={"w": simulate(point, point)["w"] + 0.3},
        simulate=simulate,
        victim=nn.Identity(),
        threat_model=ThreatModel(victim="initial", batch_norm="absent"),
        image_shape=(1, 2, 3),
        num_classes=2,
        batch_size=1,
        labels=torch.zeros(1, 1, dtype=torch.int64),
        seeds=(0,),
        bytes_per_update=1,
    )
    return Objective(
        observation,
        [0],
        backend=GenericBackend(simulate),
        likelihood=Gaussian(sigma=sigma),
        priors=[],
        decode=lambda variables, _: Guess(variables["pixels"], torch.zeros(len(variables["pixels"]), 1)),
        project=lambda variables: variables,
        labels=None,
        draw=lambda _, evaluations: {BALL: ball.draw((1, 1, 2, 3), [11], evaluations)},
    )


def test_a_ball_adds_the_length_of_the_jacobian_to_a_gaussian_likelihood() -> None:
    """delta^2 / (N + 2) |J|^2 / (2 sigma^2) on the average, exactly so for a linear update."""
    source = torch.Generator().manual_seed(0)
    matrix = torch.randn(20, 6, generator=source, dtype=torch.float64)
    point = torch.rand(1, 1, 1, 2, 3, generator=source, dtype=torch.float64)
    radius, sigma = 0.5, 0.7
    objective = linear(matrix, point, sigma, Ball(radius=radius, samples=500))
    values = torch.stack([objective({"pixels": point}).value[0] for _ in range(100)])
    center = 20 * 0.3**2 / (2 * sigma**2)
    added = radius**2 / (6 + 2) * matrix.square().sum() / (2 * sigma**2)
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - center - added) < 4 * error
    assert error < 0.01 * added


def test_bad_settings_are_named() -> None:
    for settings in ({"radius": -1.0}, {"radius": math.nan}, {"samples": 0}):
        with pytest.raises(ConfigurationError, match="radius >= 0 and samples >= 1"):
            Ball(**settings)
