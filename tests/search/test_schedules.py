"""The schedules and signs of Adam against closed formulas and a loop of their own, and the noise of its steps."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.search import Adam
from gibench.search.evaluation import Evaluation, Variables

STEPS, RATE = 12, 0.1


class Bowl:
    """sum (x - 0.3)^2 scale / 2 for every row; keeps where it was evaluated."""

    capture = False

    def __init__(self, seeds: list[int], scale: float = 1.0, *, box: bool = False) -> None:
        self.seeds, self.scale, self.box = seeds, scale, box
        self.visited: list[Tensor] = []
        count = torch.zeros(len(seeds), dtype=torch.int64)
        self.evaluations, self.improved = count, count.clone()
        self.value = torch.full((len(seeds),), torch.inf)
        self.searched = torch.ones_like(count, dtype=torch.bool)

    def __call__(self, variables: Variables, rows: Tensor | None = None) -> Evaluation:
        place = variables["x"].clone()
        self.visited.append(place)
        value = 0.5 * self.scale * (place - 0.3).square().flatten(1).sum(1)
        where = slice(None) if rows is None else rows
        self.value[where] = value.float()
        self.evaluations[where] += 1
        return Evaluation(value, {"x": self.scale * (place - 0.3)})

    def project(self, variables: Variables) -> Variables:
        return {"x": variables["x"].clamp(0, 1)} if self.box else variables

    def decode(self, variables: Variables) -> Any:
        return NamedTuple("Guess", [("images", Tensor)])(variables["x"])  # type: ignore[operator]


def walk(search: Adam, seeds: list[int], start: Tensor | None = None, **bowl: Any) -> Tensor:
    """The iterates (steps, R, ...)."""
    objective = Bowl(seeds, **bowl)
    begin = torch.full((len(seeds), 40, 25), 0.9, dtype=torch.float64) if start is None else start
    search(objective, {"x": begin})  # type: ignore[arg-type]
    return torch.stack(objective.visited)


def factor_by_hand(schedule: str, step: int, warm_up: int) -> float:
    shape = {
        "cosine": math.cos(math.pi * step / (2 * STEPS)) ** 2,  # the half-angle form
        "constant": 1.0,
        "exponential": math.exp(step * math.log(0.9)),
        "step": 10.0 ** -((step >= 4) + (step >= 7) + (step >= 10)),
    }[schedule]
    return shape * (step / warm_up if step < warm_up else 1.0)


def loop(schedule: str, warm_up: int, start: np.ndarray, scale: float, signed: bool | str) -> np.ndarray:
    """Adam written out, of the same bowl."""
    place, mean, square, visited = start.copy(), 0.0, 0.0, []
    for step in range(STEPS):
        visited.append(place.copy())
        slope = scale * (place - 0.3)
        left = (STEPS - step) / STEPS
        if signed == "soft":
            slope = np.tanh(left * slope) / left
        elif signed:
            slope = np.sign(slope)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        length = np.sqrt(square / (1 - 0.999 ** (step + 1))) + 1e-8
        place = place - RATE * factor_by_hand(schedule, step, warm_up) * mean / (1 - 0.9 ** (step + 1)) / length
    return np.stack(visited)


@pytest.mark.parametrize("signed", [False, True, "soft"])
@pytest.mark.parametrize("warm_up", [0, 5])
@pytest.mark.parametrize("schedule", ["cosine", "constant", "exponential", "step"])
def test_iterates_are_those_of_a_loop(schedule: Any, warm_up: int, signed: Any) -> None:
    search = Adam(
        steps=STEPS,
        rate=RATE,
        signed=signed,
        schedule=schedule,
        decay=0.9 if schedule == "exponential" else 1.0,
        warm_up=warm_up,
    )
    start = torch.linspace(-1, 2, 14, dtype=torch.float64).reshape(2, 7)
    found = walk(search, [0, 1], start, scale=3.0)
    np.testing.assert_allclose(
        found.numpy(), loop(schedule, warm_up, start.numpy(), 3.0, signed), rtol=1e-9, atol=1e-12
    )


def test_cosine_ends_near_zero_and_a_warm_up_begins_there() -> None:
    search = Adam(steps=1000, schedule="cosine", warm_up=50)
    assert search.factor(0) == 0
    assert search.factor(25) == pytest.approx(0.5 * Adam(steps=1000, schedule="cosine").factor(25))
    assert search.factor(500) == pytest.approx(0.5)
    assert 0 < search.factor(999) < 3e-6


def test_the_soft_sign_is_the_gradient_where_that_is_small_and_a_bound_where_it_is_large() -> None:
    plain = walk(Adam(steps=STEPS, schedule="cosine"), [0], scale=1e-4)
    soft = walk(Adam(steps=STEPS, schedule="cosine", signed="soft"), [0], scale=1e-4)
    torch.testing.assert_close(soft, plain, rtol=1e-6, atol=0)
    hard = walk(Adam(steps=2, signed=True, schedule="constant"), [0], scale=1e6)
    bounded = walk(Adam(steps=2, signed="soft", schedule="constant"), [0], scale=1e6)
    torch.testing.assert_close(bounded, hard)


SEEDS = [11, 22, 33]


def noisy(**settings: Any) -> Adam:
    return Adam(**{"steps": 6, "rate": 0.1, "schedule": "constant", "noise": 0.2, **settings})


def test_noise_has_the_stated_length_and_follows_the_rate() -> None:
    """The bowl is flat, so that every move is noise."""
    moves = walk(noisy(steps=8, schedule="cosine"), SEEDS, scale=0.0).diff(dim=0)
    for step, move in enumerate(moves):
        expected = 0.2 * 0.1 * Adam(steps=8, schedule="cosine").factor(step)
        for row in move:
            assert row.std().item() == pytest.approx(expected, rel=0.1)  # of 1,000 numbers: 2.2 percent
            assert abs(row.mean().item()) < 5 * expected / math.sqrt(1000)
    flat = (moves / moves.flatten(2).std(2)[..., None, None]).flatten(2).flatten(0, 1)
    others = flat @ flat.T / 1000 - torch.eye(len(flat), dtype=torch.float64)
    assert others.abs().max() < 0.2  # no two rows or steps share numbers


def test_noise_is_the_same_again_and_in_any_company() -> None:
    together = walk(noisy(), SEEDS)
    assert torch.equal(together, walk(noisy(), SEEDS))
    assert not torch.equal(together[:, 0], together[:, 1])
    turned = walk(noisy(), SEEDS[::-1])
    for row, seed in enumerate(SEEDS):
        assert torch.equal(together[:, row], walk(noisy(), [seed])[:, 0])
        assert torch.equal(together[:, row], turned[:, 2 - row])
    assert not torch.equal(together[1:, 0], walk(noisy(), [SEEDS[0] + 1])[1:, 0])


def test_noise_stays_with_its_row_when_others_finish() -> None:
    start = torch.full((3, 40, 25), 0.9, dtype=torch.float64)
    start[:2] = 0.3  # at the optimum, but for the noise
    objective = Bowl(SEEDS)
    noisy(steps=120, target=60.0, rate=0.001)(objective, {"x": start.clone()})  # type: ignore[arg-type]
    assert [len(place) for place in objective.visited] == 50 * [3] + 70 * [1]
    alone = walk(noisy(steps=120, rate=0.001), SEEDS[2:], start[2:])
    torch.testing.assert_close(torch.stack([place[-1] for place in objective.visited]), alone[:, 0], rtol=0, atol=0)


def test_noise_comes_before_the_box() -> None:
    places = walk(noisy(noise=5.0), SEEDS, box=True)
    assert places.min() == 0
    assert places.max() == 1


def test_without_noise_no_seeds_are_asked_for() -> None:
    objective = Bowl(SEEDS)
    del objective.seeds
    Adam(steps=2)(objective, {"x": torch.zeros(3, 4)})  # type: ignore[arg-type]
    assert len(objective.visited) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"warm_up": 5}, "warm_up is 5"),
        ({"warm_up": -1}, "warm_up is -1"),
        ({"noise": -0.1}, "noise -0.1"),
        ({"noise": math.nan}, "noise nan"),
        ({"schedule": "linear"}, "schedule is 'linear'"),
        ({"signed": "hard"}, "signed 'hard'"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Adam(steps=5, **settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
