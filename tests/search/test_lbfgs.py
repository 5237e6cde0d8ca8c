"""Batched L-BFGS: every row walks the path that torch.optim.LBFGS walks alone."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import matching as reference
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.search import LBFGS
from gibench.search.history import History
from gibench.search.objective import Evaluation, Variables


class Recorded:
    """An objective over plain functions, one for each row, that keeps every iterate."""

    def __init__(self, functions: list[Callable[[Tensor], Tensor]]) -> None:
        self.functions = functions
        self.visited: list[Tensor] = []
        self.evaluations = torch.zeros(len(functions), dtype=torch.int64)

    def __call__(self, variables: Variables, running: Tensor | None = None) -> Evaluation:
        point = variables["x"].detach().requires_grad_()
        values = torch.stack([function(row) for function, row in zip(self.functions, point, strict=True)])
        (gradient,) = torch.autograd.grad(values.sum(), point)
        self.visited.append(point.detach())
        self.evaluations += 1 if running is None else running.long()
        return Evaluation(values.detach(), {"x": gradient})

    @staticmethod
    def project(variables: Variables) -> Variables:
        return variables


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def bowl(x: Tensor) -> Tensor:
    return (torch.arange(1, len(x) + 1, dtype=x.dtype) * (x - 0.3) ** 2).sum()


def valley(x: Tensor) -> Tensor:
    return torch.log(torch.cosh(x - 1)).sum() + 0.1 * (x[1:] - x[:-1]).square().sum()


def flat(x: Tensor) -> Tensor:
    return 1e-9 * (x**2).sum()


def exploding(x: Tensor) -> Tensor:
    return -torch.exp(x**2).sum()


FUNCTIONS = [rosenbrock, bowl, valley, flat]


def starts(count: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("history", [3, 100])
@pytest.mark.parametrize("steps", [1, 4])
def test_each_row_follows_torch(steps: int, history: int) -> None:
    start = starts(len(FUNCTIONS))
    objective = Recorded(FUNCTIONS)
    LBFGS(steps=steps, history=history)(objective, {"x": start})  # type: ignore[arg-type]
    for row, function in enumerate(FUNCTIONS):
        alone = reference.lbfgs(function, start[row], steps=steps, history=history)
        torch.testing.assert_close(objective.visited[-1][row], alone, rtol=1e-6, atol=1e-8)


def test_rows_do_not_feel_each_other() -> None:
    start = starts(len(FUNCTIONS) + 1)
    functions = [*FUNCTIONS, exploding]
    together = Recorded(functions)
    LBFGS(steps=3)(together, {"x": start})  # type: ignore[arg-type]
    for row, function in enumerate(functions):
        alone = Recorded([function])
        LBFGS(steps=3)(alone, {"x": start[row : row + 1]})  # type: ignore[arg-type]
        torch.testing.assert_close(together.visited[-1][row], alone.visited[-1][0], equal_nan=True)
        assert together.evaluations[row] == alone.evaluations[0]


def test_a_diverged_row_is_buried() -> None:
    objective = Recorded([exploding, bowl])
    LBFGS(steps=50)(objective, {"x": starts(2) * 3})  # type: ignore[arg-type]
    assert objective.evaluations[0] < 50
    torch.testing.assert_close(objective.visited[-1][1], torch.full((6,), 0.3, dtype=torch.float64))


def test_target_stops_a_row() -> None:
    short, long = Recorded([rosenbrock]), Recorded([rosenbrock])
    LBFGS(steps=30, iterations=5, target=1e-2)(short, {"x": starts(1)})  # type: ignore[arg-type]
    LBFGS(steps=30, iterations=5)(long, {"x": starts(1)})  # type: ignore[arg-type]
    assert short.evaluations < long.evaluations


def two_loop(pairs: list[tuple[Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """The textbook recursion (Nocedal and Wright, algorithm 7.4)."""
    q = gradient.clone()
    alphas = []
    for s, y in reversed(pairs):
        alpha = (s @ q) / (s @ y)
        q = q - alpha * y
        alphas.append(alpha)
    s, y = pairs[-1]
    r = q * (s @ y) / (y @ y)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        r = r + s * (alpha - (y @ r) / (s @ y))
    return r


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 10_000))
def test_compact_history_is_the_two_loop_recursion(count: int, size: int, seed: int) -> None:
    """Two rows that skip different pairs, with a ring that may wrap around."""
    source = torch.Generator().manual_seed(seed)
    rows, width = 2, 12
    history = History(torch.zeros(rows, width, dtype=torch.float64), size)
    kept: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for _ in range(count):
        step = torch.randn(rows, width, generator=source, dtype=torch.float64)
        change = step + 0.3 * torch.randn(rows, width, generator=source, dtype=torch.float64)
        chosen = torch.rand(rows, generator=source) < 0.7
        history.add(step, change, chosen)
        for row in range(rows):
            if chosen[row] and step[row] @ change[row] > 1e-10:
                kept[row].append((step[row], change[row]))
    gradient = torch.randn(rows, width, generator=source, dtype=torch.float64)
    found = history.apply(gradient)
    for row in range(rows):
        expected = two_loop(kept[row][-size:], gradient[row]) if kept[row] else gradient[row]
        torch.testing.assert_close(found[row], expected, rtol=1e-7, atol=1e-9)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigurationError):
        LBFGS(steps=0)
