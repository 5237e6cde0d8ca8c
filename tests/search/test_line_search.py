"""Line searches: each row lands where its conditions hold, as torch's does, whatever the rows beside it do."""

import pytest
import torch
from torch import Tensor

from gibench.search.line_search import LineSearch, Ray, backtracking, fixed, strong_wolfe

WIDTH = 3


class Hills:
    """R bumpy functions that grow at infinity: a . cos(b x) + c |x - d|^2 / 2, and NaN where x_0 is at the wall."""

    def __init__(self, rows: int, seed: int, wall: float = torch.inf) -> None:
        self.source = torch.Generator().manual_seed(seed)
        self.a, self.b, self.d, self.point = (3 * self.normal(rows, WIDTH) for _ in range(4))
        self.c = 0.1 + self.normal(rows, 1).square()
        self.wall = wall
        self.asked = torch.zeros(rows, dtype=torch.int64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.source, dtype=torch.float64)

    def value(self, points: Tensor, row: int | slice = slice(None)) -> Tensor:
        bumps = self.a[row] * torch.cos(self.b[row] * points)
        values = (bumps + self.c[row] * (points - self.d[row]).square() / 2).sum(-1)
        return values + torch.where(points[..., 0] < self.wall, 0, torch.nan)

    def evaluate(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that nobody asked for are nonsense."""
        self.asked += rows
        leaf = points.clone().requires_grad_()
        values = self.value(leaf)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return torch.where(rows, values.detach(), -1e9), torch.where(rows[:, None], gradient, -1e9)

    def downhill(self) -> Ray:
        value, gradient = self.evaluate(self.point, torch.ones_like(self.asked, dtype=torch.bool))
        self.asked.zero_()
        return Ray(self.point, -gradient, value, gradient, project=lambda flat: flat, evaluate=self.evaluate)


def all_rows(hills: Hills) -> tuple[Tensor, Tensor]:
    return torch.ones_like(hills.asked, dtype=torch.bool), torch.full_like(hills.asked, 25)


def lengths(hills: Hills) -> Tensor:
    """From a thousandth to a thousand."""
    return 10 ** (6 * torch.rand(len(hills.asked), generator=hills.source, dtype=torch.float64) - 3)


def test_strong_wolfe_lands_where_torch_does() -> None:
    """The first iteration of torch's L-BFGS, which goes down the gradient, with 25 trials after the first."""
    hills = Hills(200, 0)
    ray, tried = hills.downhill(), lengths(hills)
    rows, budget = all_rows(hills)
    first = (1 / ray.gradient.abs().sum(1)).clamp(max=1) * tried
    landing = strong_wolfe(ray, first, rows, budget)
    for row, rate in enumerate(tried.tolist()):
        point = hills.point[row].clone().requires_grad_()
        optimizer = torch.optim.LBFGS([point], lr=rate, max_iter=1, max_eval=26, line_search_fn="strong_wolfe")
        calls = [0]

        def closure(point: Tensor = point, row: int = row, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            value = hills.value(point, row)
            (point.grad,) = torch.autograd.grad(value, point)
            return value.detach()

        optimizer.step(closure)
        torch.testing.assert_close(ray.at(landing.length)[row], point.detach(), rtol=1e-7, atol=1e-7)
        assert landing.trials[row] == calls[0] - 1


def test_strong_wolfe_conditions_hold() -> None:
    """Wherever fewer trials than allowed were made, and even with a wall on the way."""
    hills = Hills(2000, 1, wall=4.0)
    hills.point[:, 0].clamp_(max=3)
    ray, (rows, budget) = hills.downhill(), all_rows(hills)
    landing = strong_wolfe(ray, lengths(hills), rows, budget)
    assert torch.equal(landing.trials, hills.asked)
    assert (hills.asked > 3).any()
    assert (landing.trials <= 26).all()
    reached = landing.trials < 26
    value, gradient = hills.evaluate(ray.at(landing.length), rows)
    torch.testing.assert_close(landing.value, value)
    torch.testing.assert_close(landing.gradient, gradient)
    slope = (gradient * ray.direction).sum(1)
    wide = landing.length > 1e-6  # beside a wall the bracket closes before the slope is small
    assert (value <= ray.value + 1e-4 * landing.length * ray.slope)[reached].all()
    beside = hills.point[:, 0] + (landing.length + 1e-6) * ray.direction[:, 0] >= 4
    assert (slope.abs() <= 0.9 * ray.slope.abs())[reached & wide & ~beside].all()


def test_backtracking_takes_the_longest_halving_that_descends() -> None:
    hills = Hills(200, 2, wall=4.0)
    hills.point[:, 0].clamp_(max=3)
    ray, first = hills.downhill(), lengths(hills)
    rows, budget = all_rows(hills)
    landing = backtracking(ray, first, rows, torch.zeros_like(budget))
    for row in range(200):
        halved = [first[row] / 2**count for count in range(21)]
        values = [hills.value(hills.point[row] + length * ray.direction[row], row) for length in halved]
        promised = [ray.value[row] + 1e-4 * length * ray.slope[row] for length in halved]
        count = next(index for index in range(21) if values[index] <= promised[index])
        assert landing.length[row] == halved[count]
        assert landing.trials[row] == hills.asked[row] == count + 1
        torch.testing.assert_close(landing.value[row], values[count])


@pytest.mark.parametrize("search", [fixed, backtracking, strong_wolfe])
def test_rows_search_alone(search: LineSearch) -> None:
    hills = Hills(12, 3)
    ray, first = hills.downhill(), lengths(hills)
    rows, budget = all_rows(hills)
    together = search(ray, first, rows, budget)
    for row in range(12):
        one = torch.arange(12) == row
        hills.asked.zero_()
        alone = search(ray, first, one, budget)
        assert torch.equal(hills.asked > 0, one)
        assert alone.trials.sum() == alone.trials[row] == together.trials[row]
        assert alone.length[row] == together.length[row]
        assert torch.equal(alone.gradient[row], together.gradient[row])


@pytest.mark.parametrize(("search", "most"), [(backtracking, 21), (strong_wolfe, 26)])
def test_nothing_better_is_no_step(search: LineSearch, most: int) -> None:
    """Behind a wall on all sides no trial is finite."""
    hills = Hills(4, 1)
    ray, (rows, budget) = hills.downhill(), all_rows(hills)
    hills.wall = -torch.inf
    landing = search(ray, torch.ones(4, dtype=torch.float64), rows, 4 * budget)
    assert (landing.trials == most).all()
    assert not landing.length.any()
    assert torch.equal(landing.value, ray.value)
    assert torch.equal(landing.gradient, ray.gradient)


def test_a_narrow_bracket_is_not_divided() -> None:
    """Of 1e-6 in the coordinate that moves most; ten halvings go below 1e-9."""
    hills = Hills(4, 1)
    ray, (rows, budget) = hills.downhill(), all_rows(hills)
    hills.wall = -torch.inf
    landing = strong_wolfe(ray, 1e-6 / ray.direction.abs().amax(1), rows, budget)
    assert (landing.trials == 11).all()


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_spent_budget_ends_strong_wolfe_at_the_lowest(limit: int) -> None:
    hills = Hills(40, 9)
    ray, first = hills.downhill(), lengths(hills)
    rows, budget = all_rows(hills)
    landing = strong_wolfe(ray, first, rows, torch.full_like(budget, limit))
    assert (landing.trials <= limit + 1).all()
    assert (landing.trials == limit + 1).any()
    value, gradient = hills.evaluate(ray.at(landing.length), rows)
    torch.testing.assert_close(landing.value, value)
    torch.testing.assert_close(landing.gradient, gradient)
    assert (value <= ray.value).all()
    assert ((landing.length == 0) == (value == ray.value)).all()


def test_a_box_bends_the_ray_and_takes_its_slope() -> None:
    """Half of |x|^2 over x_0 >= 1, from (2, 2, 2) downhill: beyond length 1/2 the first coordinate is held."""

    def evaluate(points: Tensor, _rows: Tensor) -> tuple[Tensor, Tensor]:
        return points.square().sum(1) / 2, points

    def project(points: Tensor) -> Tensor:
        return torch.cat([points[:, :1].clamp(min=1), points[:, 1:]], 1)

    point = torch.full((1, WIDTH), 2.0, dtype=torch.float64)
    ray = Ray(point, -point, point.square().sum(1) / 2, point, project=project, evaluate=evaluate)
    rows = torch.tensor([True])
    for length, value, slope in ((0.25, 3.375, -9.0), (0.75, 0.75, -2.0)):
        trial = ray.attempt(torch.tensor([length], dtype=torch.float64), rows)
        assert trial.value.item() == value
        assert trial.slope.item() == slope
