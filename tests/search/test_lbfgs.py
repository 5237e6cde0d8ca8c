"""Batched L-BFGS: every row walks the path that torch.optim.LBFGS walks alone."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import matching as reference
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.progress import Step, watching
from gibench.search import LBFGS
from gibench.search.evaluation import Evaluation, Guess, Variables
from gibench.search.history import History

LINE_SEARCHES = ["none", "backtracking", "strong_wolfe"]


class Recorded:
    """An objective over plain functions, one for each row, that keeps every point that it evaluates."""

    def __init__(self, functions: Sequence[Callable[[Tensor], Tensor]], box: tuple[float, float] | None = None) -> None:
        self.functions = functions
        self.box = box
        self.visited: list[list[Tensor]] = [[] for _ in functions]
        self.sizes: list[int] = []
        self.evaluations = torch.zeros(len(functions), dtype=torch.int64)

    def __call__(self, variables: Variables, rows: Tensor | None) -> Evaluation:
        rows = torch.arange(len(self.functions)) if rows is None else rows
        leaves = {name: value.detach().requires_grad_() for name, value in variables.items()}
        points = torch.cat([leaf.flatten(1) for leaf in leaves.values()], 1)
        values = torch.stack([self.functions[row](point) for row, point in zip(rows.tolist(), points, strict=True)])
        gradients = torch.autograd.grad(values.sum(), list(leaves.values()))
        for row, point in zip(rows.tolist(), points.detach(), strict=True):
            self.visited[row].append(point)
        self.sizes.append(len(rows))
        self.evaluations[rows] += 1
        return Evaluation(values.detach(), dict(zip(leaves, gradients, strict=True)))

    def project(self, variables: Variables) -> Variables:
        return {name: value.clamp(*self.box) if self.box else value for name, value in variables.items()}

    def decode(self, variables: Variables, rows: Tensor | None) -> Guess:
        assert rows is None
        return Guess(variables["x"], torch.zeros(0))

    def path(self, row: int) -> Tensor:
        """The points of a row, without those that it rested at while others went on."""
        return distinct(self.visited[row])


def distinct(points: list[Tensor]) -> Tensor:
    """The points (count, n) in the order in which they were visited first."""
    return torch.stack(list({point.numpy().tobytes(): point for point in points}.values()))


def searched(
    functions: Sequence[Callable[[Tensor], Tensor]],
    start: Tensor,
    box: tuple[float, float] | None = None,
    **settings: Any,
) -> Recorded:
    objective = Recorded(functions, box)
    LBFGS(**settings)(objective, {"x": start})
    return objective


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


def quartic(x: Tensor) -> Tensor:
    return (torch.arange(1, len(x) + 1, dtype=x.dtype) * (x - 0.5) ** 4).sum()


FUNCTIONS = [rosenbrock, bowl, valley, flat]


def starts(count: int, width: int = 6) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def torch_path(
    function: Callable[[Tensor], Tensor], start: Tensor, *, steps: int, iterations: int, line_search: str
) -> Tensor:
    """Every point at which torch.optim.LBFGS evaluates; it opens a call with one that is known."""
    point = start.clone().requires_grad_()
    named = None if line_search == "none" else line_search
    optimizer = torch.optim.LBFGS([point], max_iter=iterations, line_search_fn=named)
    visited: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = function(point)
        loss.backward()
        visited.append(point.detach().clone())
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return distinct(visited)


@pytest.mark.parametrize("history", [3, 100])
@pytest.mark.parametrize("steps", [1, 4])
def test_each_row_follows_torch(steps: int, history: int) -> None:
    start = starts(len(FUNCTIONS))
    objective = searched(FUNCTIONS, start, steps=steps, history=history)
    for row, function in enumerate(FUNCTIONS):
        alone = reference.lbfgs(function, start[row], steps=steps, history=history)
        torch.testing.assert_close(objective.path(row)[-1], alone, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("iterations", [1, 2, 3, 7, 20, 40])
@pytest.mark.parametrize("line_search", ["none", "strong_wolfe"])
@pytest.mark.parametrize("function", [*FUNCTIONS, quartic])
def test_every_evaluation_is_torchs(function: Callable[[Tensor], Tensor], line_search: str, iterations: int) -> None:
    """And no more are made than the cost estimate says."""
    start, steps = 3 * starts(1), 5
    expected = torch_path(function, start[0], steps=steps, iterations=iterations, line_search=line_search)
    settings: dict[str, Any] = {"steps": steps, "iterations": iterations, "line_search": line_search}
    objective = searched([function], start, **settings)
    found = objective.path(0)
    # Without a line search, PyTorch evaluates its last point only in the next call.
    assert len(found) - len(expected) in ((0, 1) if line_search == "none" else (0,))
    torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-6, atol=1e-8)
    assert objective.evaluations[0] <= LBFGS(**settings).evaluations


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
def test_rows_do_not_feel_each_other(line_search: str) -> None:
    """Rows that converge, diverge or start lost leave the others and their counts alone."""
    functions = [*FUNCTIONS, exploding, quartic, bowl]
    start = starts(len(functions))
    start[6, 0] = torch.nan
    settings: dict[str, Any] = {"steps": 6, "iterations": 8, "target": 1e-4, "line_search": line_search}
    together = searched(functions, start, **settings)
    for row, function in enumerate(functions):
        alone = searched([function], start[row : row + 1], **settings)
        assert together.evaluations[row] == alone.evaluations[0]
        if row != 6:
            torch.testing.assert_close(together.path(row), alone.path(0), rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
def test_finished_rows_are_not_evaluated(line_search: str) -> None:
    functions = [flat, flat, flat, *[bowl] * 8, rosenbrock]
    objective = searched(functions, starts(12), steps=6, iterations=60, line_search=line_search)
    assert objective.sizes[0] == 12
    assert objective.sizes[-1] == 1
    assert sum(objective.sizes) == objective.evaluations.sum()
    for row in range(12):
        assert objective.evaluations[row] == len(objective.path(row))


def test_a_diverged_row_is_buried() -> None:
    objective = searched([exploding, bowl], starts(2) * 3, steps=50)
    assert objective.evaluations[0] < 50
    torch.testing.assert_close(objective.path(1)[-1], torch.full((6,), 0.3, dtype=torch.float64))


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
def test_target_stops_a_row(line_search: str) -> None:
    settings: dict[str, Any] = {"steps": 30, "iterations": 5, "line_search": line_search}
    short, long = (searched([rosenbrock], starts(1), **settings, target=target) for target in (1e-2, None))
    assert short.evaluations < long.evaluations
    assert rosenbrock(short.path(0)[-1]) < 1e-2


@pytest.mark.parametrize("line_search", ["backtracking", "strong_wolfe"])
@pytest.mark.parametrize("function", [rosenbrock, bowl, valley, quartic])
def test_line_searches_descend_to_the_minimum(function: Callable[[Tensor], Tensor], line_search: str) -> None:
    values: list[float] = []
    with watching(lambda step: values.append(float(step.objective[0]))):
        objective = searched([function], 3 * starts(1), steps=40, line_search=line_search)
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))
    assert values[-1] < 1e-8
    assert objective.evaluations[0] <= LBFGS(steps=40, line_search=line_search).evaluations  # type: ignore[arg-type]


@pytest.mark.parametrize("line_search", ["backtracking", "strong_wolfe"])
def test_a_step_too_far_is_taken_back(line_search: str) -> None:
    """Beyond an edge the value is NaN; the longest first step ends there."""

    def edge(x: Tensor) -> Tensor:
        return (x - 1 - 1e-3 * torch.log(2 - x)).square().sum()

    start = starts(1).clamp(max=0)
    assert searched([edge], start, steps=20, rate=30.0).evaluations < 10
    objective = searched([edge], start, steps=20, rate=30.0, line_search=line_search)
    assert any(point.max() > 2 for point in objective.visited[0])
    assert edge(objective.path(0)[-1]) < 1e-8


@pytest.mark.parametrize("line_search", ["backtracking", "strong_wolfe"])
def test_a_search_that_finds_nothing_ends_the_row(line_search: str) -> None:
    """The derivative points the wrong way, so every direction goes up."""

    def lie(x: Tensor) -> Tensor:
        return x.square().sum().detach() * 2 - x.square().sum() + x.square().sum().detach()

    objective = searched([lie], starts(1), steps=300, line_search=line_search)
    assert objective.evaluations[0] < 100


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
def test_box(line_search: str) -> None:
    """Some minima lie outside; what the box holds back misleads no line search."""
    target = torch.linspace(-0.4, 1.4, 6, dtype=torch.float64)

    def outside(x: Tensor) -> Tensor:
        return (torch.arange(1, 7) * (x - target).square()).sum()

    start = starts(1).clamp(0, 1)
    objective = searched([outside], start, (0.0, 1.0), steps=20, line_search=line_search)
    assert all(((point >= 0) & (point <= 1)).all() for point in objective.visited[0])
    torch.testing.assert_close(objective.path(0)[-1], target.clamp(0, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("line_search", ["none", "strong_wolfe"])
def test_double_precision_around_a_single_precision_objective(line_search: str) -> None:
    """As torch does on float64 points that its closure rounds."""

    def rounded(x: Tensor) -> Tensor:
        return rosenbrock(x.float()).double()

    start = starts(1).float()
    objective = searched([rosenbrock], start, steps=2, line_search=line_search, float64=True)
    assert {point.dtype for point in objective.visited[0]} == {torch.float32}
    expected = torch_path(rounded, start[0].double(), steps=2, iterations=20, line_search=line_search)
    torch.testing.assert_close(torch.stack(objective.visited[0])[: len(expected)], expected.float())


def test_double_precision_costs_twice_the_memory() -> None:
    assert LBFGS(float64=True).state_copies == 2 * LBFGS().state_copies


def test_variables_of_several_names_are_one_problem() -> None:
    start = starts(2)
    whole = searched([rosenbrock, bowl], start, steps=3)
    parts = Recorded([rosenbrock, bowl])
    LBFGS(steps=3)(parts, {"x": start[:, :4].reshape(2, 2, 2), "z": start[:, 4:]})
    for row in range(2):
        torch.testing.assert_close(parts.path(row), whole.path(row))


@pytest.mark.parametrize("line_search", LINE_SEARCHES)
def test_every_row_is_reported_in_order(line_search: str) -> None:
    """A row that is finished keeps its last value and images."""
    functions = [flat, rosenbrock, bowl, exploding, flat, valley]
    start = starts(6)
    steps: list[Step] = []
    images: list[Tensor] = []
    with watching(steps.append), watching(lambda step: images.append(step.images())):
        objective = searched(functions, start, steps=8, line_search=line_search)
    assert [step.done for step in steps] == [*range(1, len(steps) + 1)]
    for step, image in zip(steps, images, strict=True):
        assert step.objective.shape == (6,)
        expected = torch.stack([function(point) for function, point in zip(functions, image, strict=True)])
        torch.testing.assert_close(step.objective, expected, equal_nan=True)
        assert torch.equal(image[[0, 4]], start[[0, 4]])
    assert not torch.equal(steps[0].objective[1], steps[1].objective[1])
    for row in (1, 2, 5):
        assert any(torch.equal(images[-1][row], point) for point in objective.visited[row])
    assert steps[-1].objective[[2, 5]].max() < 1e-8


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


@given(st.sets(st.integers(0, 4), min_size=1), st.integers(1, 6), st.integers(0, 10_000))
def test_history_of_kept_rows_is_theirs_alone(kept: set[int], size: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    index = torch.tensor(sorted(kept))
    whole, alone = (History(torch.zeros(count, 7, dtype=torch.float64), size) for count in (5, len(index)))
    for count in range(6):
        step = torch.randn(5, 7, generator=source, dtype=torch.float64)
        change = step + 0.3 * torch.randn(5, 7, generator=source, dtype=torch.float64)
        chosen = torch.rand(5, generator=source) < 0.7
        if count == 3:
            whole.keep(index)
        now = torch.arange(5) if count < 3 else index
        whole.add(step[now], change[now], chosen[now])
        alone.add(step[index], change[index], chosen[index])
    gradient = torch.randn(len(index), 7, generator=source, dtype=torch.float64)
    torch.testing.assert_close(whole.apply(gradient), alone.apply(gradient), rtol=1e-9, atol=1e-11)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigurationError):
        LBFGS(steps=0)
    with pytest.raises(ConfigurationError, match="backtracking"):
        LBFGS(line_search="wolfe")  # type: ignore[arg-type]
