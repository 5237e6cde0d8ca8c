"""How far a step goes along its direction: for every row on its own, all rows in step with each other."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ARMIJO = 1e-4  # c1: a step must lower the value by this share of what the slope at its start promises
WOLFE = 0.9  # c2: and its slope must be at most this share of the slope at its start
MOST_TRIALS = 25  # of one strong Wolfe search, after its first
MOST_HALVINGS = 20
NARROW = 1e-9  # a bracket in which no coordinate moves by more is not divided further


class Trial(NamedTuple):
    """A point on each ray. value: (R,). slope: (R,), along the ray. gradient: (R, n)."""

    value: Tensor
    slope: Tensor
    gradient: Tensor


class Landing(NamedTuple):
    """Where each row goes, 0 where nothing better was found. length, value, trials: (R,). gradient: (R, n)."""

    length: Tensor
    value: Tensor
    gradient: Tensor
    trials: Tensor


class Ray:
    """The rays point + t direction of R rows; `project` bends them at the edges of a box.

    Args:
        point, direction, gradient: (R, n).
        value: (R,).
        project: (R, n) -> the nearest admissible points.
        evaluate: points (R, n) and the rows of interest (R,), bool -> values (R,) and derivatives (R, n), of which
            those of other rows mean nothing.
    """

    def __init__(
        self,
        point: Tensor,
        direction: Tensor,
        value: Tensor,
        gradient: Tensor,
        *,
        project: Callable[[Tensor], Tensor],
        evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self.point, self.direction, self.value, self.gradient = point, direction, value, gradient
        self.project, self.evaluate = project, evaluate
        self.slope = (gradient * direction).sum(1)

    def at(self, length: Tensor) -> Tensor:
        """Return the points (R, n) at `length` (R,)."""
        return self.project(self.point + length[:, None] * self.direction)

    def attempt(self, length: Tensor, rows: Tensor) -> Trial:
        """Evaluate `rows` (R,), bool, at `length` (R,). Coordinates that the box holds back have no slope."""
        target = self.at(length)
        value, gradient = self.evaluate(torch.where(rows[:, None], target, self.point), rows)
        free = target == self.point + length[:, None] * self.direction
        return Trial(value, (gradient * self.direction * free).sum(1), gradient)

    def attempt_finite(self, length: Tensor, rows: Tensor) -> Trial:
        """As `attempt`; a trial that is not finite went too far, which an infinite value says."""
        trial = self.attempt(length, rows)
        finite = trial.value.isfinite() & trial.slope.isfinite()
        return trial._replace(value=torch.where(finite, trial.value, torch.inf))

    def promised(self, length: Tensor) -> Tensor:
        """Return the value (R,) at `length` that Armijo's condition asks for."""
        return self.value + ARMIJO * length * self.slope


LineSearch = Callable[[Ray, Tensor, Tensor, Tensor], Landing]
"""(ray, first length (R,), rows (R,) bool, trials left beside the first (R,)) -> landing; other rows stay anywhere."""


def fixed(ray: Ray, length: Tensor, rows: Tensor, _budget: Tensor) -> Landing:
    """Go the first length, wherever that leads."""
    value, _, gradient = ray.attempt(length, rows)
    return Landing(length, value, gradient, rows.long())


def backtracking(ray: Ray, length: Tensor, rows: Tensor, budget: Tensor) -> Landing:
    """Halve the first length until Armijo's condition holds, at most 20 times; a search once begun ignores the budget.

    Nocedal and Wright, Numerical Optimization, algorithm 3.1.
    """
    found = Landing(torch.zeros_like(length), ray.value, ray.gradient, torch.zeros_like(budget))
    for _ in range(1 + MOST_HALVINGS):
        value, _, gradient = ray.attempt_finite(length, rows)
        enough = rows & (value <= ray.promised(length))
        found = Landing(
            torch.where(enough, length, found.length),
            torch.where(enough, value, found.value),
            torch.where(enough[:, None], gradient, found.gradient),
            found.trials + rows,
        )
        rows = rows & ~enough
        if not rows.any():
            break
        length = length / 2
    return found


def strong_wolfe(ray: Ray, length: Tensor, rows: Tensor, budget: Tensor) -> Landing:
    """Search a length of sufficient decrease and small slope by brackets and cubic interpolation.

    Nocedal and Wright, Numerical Optimization, algorithms 3.5 and 3.6, with PyTorch's safeguards, so that in float64 a
    row lands where `torch.optim.LBFGS(line_search_fn="strong_wolfe")` does. One difference: a trial that is not finite
    counts as too high, where PyTorch goes on beyond a NaN.
    """
    bracket = _Bracket(ray, length, rows, budget.clamp(max=MOST_TRIALS))
    while bracket.searching.any():
        bracket.advance()
    return bracket.landing()


class _Bracket:
    """Two ends of an interval for each row, and which one is lower.

    Until an interval is known to hold a good length ("opening"), end 0 is the last trial but one and end 1 the last
    trial; afterwards ("closing") the trials replace one end after the other.
    """

    def __init__(self, ray: Ray, length: Tensor, rows: Tensor, limit: Tensor) -> None:
        self.ray, self.limit = ray, limit
        self.searching = rows
        self.closing = self.stalled = torch.zeros_like(rows)
        self.length = length  # of the next trial
        self.round = 0
        self.trials = torch.zeros_like(limit)
        # (R, 2, 3): length, value and slope of both ends.
        self.origin = torch.stack([torch.zeros_like(length), ray.value, ray.slope], 1)
        self.ends = self.origin[:, None].repeat(1, 2, 1)
        self.low = torch.zeros_like(limit)
        self.gradient = ray.gradient  # of the lower end; while opening, of end 0
        self.reach = ray.direction.abs().amax(1)

    def advance(self) -> None:
        """Make the next trial of every searching row, move its ends, and choose the length of the trial after."""
        trial = self.ray.attempt_finite(self.length, self.searching)
        self.trials = self.trials + self.searching
        new = torch.stack([self.length, trial.value, trial.slope], 1)
        curved = trial.slope.abs() <= -WOLFE * self.ray.slope
        high = trial.value > self.ray.promised(self.length)
        opening, closing = self.searching & ~self.closing, self.searching & self.closing
        self._open(new, trial.gradient, opening, high, curved)
        self._close(new, trial.gradient, closing, high, curved)
        spent = self.round >= self.limit
        narrow = (self.ends[:, 0, 0] - self.ends[:, 1, 0]).abs() * self.reach < NARROW
        self.searching = self.searching & ~(self.closing & (spent | narrow))
        self._divide(self.searching & self.closing)
        self.round += 1

    def landing(self) -> Landing:
        """Return the lower ends."""
        lower = self._end(self.low)
        return Landing(lower[:, 0], lower[:, 1], self.gradient, self.trials)

    def _open(self, new: Tensor, gradient: Tensor, rows: Tensor, high: Tensor, curved: Tensor) -> None:
        """Close the interval, accept the trial, or go further; where the budget is spent, take it or the origin."""
        if not rows.any():
            return
        spent = self.round >= self.limit
        if self.round > 1:
            high = high | (new[:, 1] >= self.ends[:, 0, 1])
        closes = ~spent & (high | (~curved & (new[:, 2] >= 0)))
        accepted = ~spent & ~high & curved
        further = rows & ~(spent | closes | accepted)
        self._set(torch.zeros_like(self.low), rows & spent, self.origin)
        self._set(torch.ones_like(self.low), rows, new)
        second = self.ends[:, 0, 1] > self.ends[:, 1, 1]
        self.low = torch.where(rows, (second | accepted).long(), self.low)
        self._take(rows & spent & (self.low == 0), self.ray.gradient)
        self._take(further | (rows & (self.low == 1)), gradient)
        beyond = new[:, 0] + 0.01 * (new[:, 0] - self.ends[:, 0, 0])
        self.length = torch.where(further, _cubic(self.ends, beyond, 10 * new[:, 0]), self.length)
        self._set(torch.zeros_like(self.low), further, new)
        self.closing = self.closing | (rows & closes)
        self.searching = self.searching & ~(rows & (spent | accepted))

    def _close(self, new: Tensor, gradient: Tensor, rows: Tensor, high: Tensor, curved: Tensor) -> None:
        """Put the trial in place of the end that it improves on; keep a sign change of the slope inside."""
        if not rows.any():
            return
        lower, other = self._end(self.low), 1 - self.low
        high = high | (new[:, 1] >= lower[:, 1])
        outside = new[:, 2] * (self._end(other)[:, 0] - lower[:, 0]) >= 0
        self._set(other, rows & ~high & ~curved & outside, lower)
        replaced = torch.where(high, other, self.low)
        self._set(replaced, rows, new)
        second = (self.ends[:, 0, 1] > self.ends[:, 1, 1]).long()
        self.low = torch.where(rows & high, second, self.low)
        self._take(rows & (self.low == replaced), gradient)
        self.searching = self.searching & ~(rows & ~high & curved)

    def _divide(self, rows: Tensor) -> None:
        """Choose a length inside the interval; one near an end twice in a row, or on it, moves away from it."""
        if not rows.any():
            return
        left, right = self.ends[:, :, 0].aminmax(dim=1)
        length = _cubic(self.ends, left, right)
        margin = 0.1 * (right - left)
        near = torch.minimum(right - length, length - left) < margin
        moved = near & (self.stalled | (length >= right) | (length <= left))
        inside = torch.where(right - length < length - left, right - margin, left + margin)
        self.length = torch.where(rows, torch.where(moved, inside, length), self.length)
        self.stalled = torch.where(rows, near & ~moved, self.stalled)

    def _end(self, which: Tensor) -> Tensor:
        return self.ends[torch.arange(len(which), device=which.device), which]

    def _set(self, which: Tensor, rows: Tensor, new: Tensor) -> None:
        chosen = rows[:, None] & (torch.arange(2, device=which.device) == which[:, None])
        self.ends = torch.where(chosen[..., None], new[:, None], self.ends)

    def _take(self, rows: Tensor, gradient: Tensor) -> None:
        self.gradient = torch.where(rows[:, None], gradient, self.gradient)


def _cubic(ends: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Return the minimizer (R,) of the cubic through both ends (R, 2, 3), between bounds; their middle without one.

    Nocedal and Wright, equation 3.59.
    """
    swapped = (ends[:, 0, 0] > ends[:, 1, 0])[:, None, None]
    (a, value_a, slope_a), (b, value_b, slope_b) = torch.where(swapped, ends.flip(1), ends).permute(1, 2, 0)
    first = slope_a + slope_b - 3 * (value_a - value_b) / (a - b)
    root = (first.square() - slope_a * slope_b).sqrt()  # NaN without a minimizer
    length = b - (b - a) * ((slope_b + root - first) / (slope_b - slope_a + 2 * root))
    return torch.where(length.isnan(), (least + most) / 2, length.clamp(least, most))
