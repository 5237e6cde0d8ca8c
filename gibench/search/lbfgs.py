"""L-BFGS with a state of its own for every row.

PyTorch's L-BFGS treats all its parameters as one problem: one history, one step length, one stopping rule. Here each of
R rows has its own, so that attacking R updates together gives each what it would get alone. In exact arithmetic a row
follows `torch.optim.LBFGS` step for step, without line search and with; tests hold the two together in float64.
"""

from typing import Literal

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.progress import Step, report
from gibench.search.base import Search
from gibench.search.evaluation import Variables
from gibench.search.flat import Flat
from gibench.search.history import History
from gibench.search.line_search import MOST_HALVINGS, LineSearch, Ray, backtracking, fixed, strong_wolfe
from gibench.search.objective import Objective

LineSearchName = Literal["none", "backtracking", "strong_wolfe"]
LINE_SEARCHES: dict[LineSearchName, LineSearch] = {
    "none": fixed,
    "backtracking": backtracking,
    "strong_wolfe": strong_wolfe,
}


class LBFGS(Search):
    """Limited-memory BFGS (Liu and Nocedal 1989); by default without line search, as DLG and iDLG use it.

    `steps` calls of up to `iterations` iterations each. A row leaves the current call when its derivative, its step or
    the change of its value falls below the tolerances, or when it has spent the evaluations of a call, and goes on in
    the next. As in PyTorch a call has iterations * 5 // 4 evaluations, one of them for its first point, although that
    is evaluated once in all. A row is finished for good, and no longer evaluated, when it is not finite, when it can no
    longer descend, or when its value is below `target`.

    Args:
        steps: calls ("outer iterations" in the papers).
        rate: step length, or what a line search tries first; the first step ever is shortened to
            min(1, 1/|gradient|_1) * rate.
        iterations: at most, in one call.
        history: pairs that the curvature is estimated from.
        tolerance_gradient, tolerance_change: absolute, as in PyTorch; small gradients stop it early.
        target: stop a row whose value is below, tested after every call; None goes on.
        line_search: "none", one evaluation an iteration; "backtracking", halve the step until it lowers the value
            (Armijo's condition with 1e-4, at most 20 halvings); "strong_wolfe", PyTorch's (1e-4 and 0.9, at most 25
            trials after the first).
        float64: keep points, derivatives, history and directions in double precision, whatever the type in which the
            objective is evaluated: in long runs the inner products of float32 stall.
    """

    def __init__(
        self,
        *,
        steps: int = 300,
        rate: float = 1.0,
        iterations: int = 20,
        history: int = 100,
        tolerance_gradient: float = 1e-7,
        tolerance_change: float = 1e-9,
        target: float | None = None,
        line_search: LineSearchName = "none",
        float64: bool = False,
    ) -> None:
        super().__init__()
        if min(steps, iterations, history) < 1 or rate <= 0:
            raise ConfigurationError("L-BFGS needs steps, iterations and history of at least 1 and rate > 0.")
        if line_search not in LINE_SEARCHES:
            raise ConfigurationError(f"line_search is {line_search!r}; choose one of {', '.join(LINE_SEARCHES)}.")
        self.steps = steps
        self.rate = rate
        self.iterations = iterations
        self.history = history
        self.tolerance_gradient = tolerance_gradient
        self.tolerance_change = tolerance_change
        self.target = target
        self.line_search = line_search
        self.float64 = float64
        self.state_copies = (2 * history + 14) * (2 if float64 else 1)
        self.budget = budget = iterations * 5 // 4
        # The last search of a call may begin with one evaluation left; strong Wolfe overruns it by one.
        most = {
            "none": min(iterations, max(budget - 1, 1)),
            "backtracking": max(budget - 2, 0) + 1 + MOST_HALVINGS,
            "strong_wolfe": budget,
        }
        self.evaluations = 1 + steps * most[line_search]

    def forward(self, objective: Objective, start: Variables) -> None:
        """See `Search`."""
        rows = _Rows(self, objective, start)
        for step in range(self.steps):
            if not rows.begin_call():
                break
            running = rows.alive
            for _ in range(self.iterations):
                running = rows.iterate(running)
                if not running.any():
                    break
            if self.target is not None:
                rows.alive = rows.alive & (rows.value >= self.target)
            report(Step(step + 1, self.steps, rows.all_values(), rows.all_images))


class _Rows:
    """The iterates of the rows that are not finished, and one iteration of those that are running.

    Finished rows are dropped from the state between calls, and rows that have left a call are not evaluated in it.
    """

    def __init__(self, settings: LBFGS, objective: Objective, start: Variables) -> None:
        self.settings, self.objective = settings, objective
        self.search = LINE_SEARCHES[settings.line_search]
        value, gradient = objective(start, None)
        self.dtype = torch.float64 if settings.float64 else value.dtype
        self.flat = Flat(start, self.dtype)
        self.point, self.gradient = self.flat.flatten(start), self.flat.flatten(gradient)
        self.value = value.to(self.dtype)
        # What is reported: the last of every row, finished or not.
        self.last_value, self.last_point = self.value, self.point
        self.ids = torch.arange(len(self.point), device=self.point.device)
        self.history = History(self.point, settings.history)
        self.moved, self.previous = torch.zeros_like(self.point), self.gradient
        self.fresh = torch.ones_like(self.ids, dtype=torch.bool)
        self.spent = torch.ones_like(self.ids)
        self.alive = self._finite()

    def begin_call(self) -> bool:
        """Bury the rows whose derivative is zero, drop the dead from the state, and say whether any row is left."""
        self.alive = self.alive & (self.gradient.abs().amax(1) > self.settings.tolerance_gradient)
        self.spent = torch.ones_like(self.spent)
        kept = self.alive.nonzero().flatten()
        if len(kept) < len(self.ids):
            self.last_value, self.last_point = self.all_values(), self._all_points()
            self.history.keep(kept)
            for name in ("ids", "alive", "fresh", "spent", "value", "point", "gradient", "previous", "moved"):
                setattr(self, name, getattr(self, name)[kept])
        return len(kept) > 0

    def iterate(self, running: Tensor) -> Tensor:
        """Move the running rows once and return those that go on in this call."""
        settings = self.settings
        self.history.add(self.moved, self.gradient - self.previous, running & ~self.fresh)
        ray = self._ray()
        first = (1 / self.gradient.abs().sum(1)).clamp(max=1) * settings.rate
        length = torch.where(self.fresh, first, settings.rate)
        descends = ray.slope.isfinite() & (ray.slope <= -settings.tolerance_change)
        self.alive = self.alive & (descends | ~running)
        running = running & descends
        if not running.any():
            return running

        landing = self.search(ray, length, running, settings.budget - self.spent)
        before, moving = self.value, running[:, None]
        target = ray.at(landing.length)
        # A whole search that found nothing would find nothing again.
        futile = running & (landing.length == 0) & (self.spent == 1) & ~self.fresh
        self.moved = torch.where(moving, target - self.point, self.moved)
        self.point = torch.where(moving, target, self.point)
        self.previous = torch.where(moving, self.gradient, self.previous)
        self.value = torch.where(running, landing.value, self.value)
        self.gradient = torch.where(moving, landing.gradient, self.gradient)
        self.fresh = self.fresh & ~running
        self.spent = self.spent + landing.trials
        self.alive = self.alive & ~futile & self._finite()
        small = self.gradient.abs().amax(1) <= settings.tolerance_gradient
        small |= self.moved.abs().amax(1) <= settings.tolerance_change
        small |= (self.value - before).abs() < settings.tolerance_change
        return running & self.alive & ~small & (self.spent < settings.budget)

    def all_values(self) -> Tensor:
        """The last values of all rows of the objective, in its order."""
        return self.last_value.index_copy(0, self.ids, self.value)

    def all_images(self) -> Tensor:
        """The images that all rows of the objective stand for now, in its order."""
        return self.objective.decode(self.flat.unflatten(self._all_points()), None).images

    def _all_points(self) -> Tensor:
        return self.last_point.index_copy(0, self.ids, self.point)

    def _ray(self) -> Ray:
        direction = -self.history.apply(self.gradient)
        if self.settings.line_search != "none":  # a coordinate that the box holds back promises no descent
            held = self._project(self.point + direction) == self.point
            direction = direction.masked_fill(held, 0)
        return Ray(self.point, direction, self.value, self.gradient, project=self._project, evaluate=self._evaluate)

    def _evaluate(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate `rows` of `points`; what is returned of the others means nothing."""
        running = rows.nonzero().flatten()
        ids = None if len(running) == len(self.last_value) else self.ids[running]
        value, gradient = self.objective(self.flat.unflatten(points[running]), ids)
        values = torch.full_like(self.value, torch.nan).index_copy(0, running, value.to(self.dtype))
        return values, torch.zeros_like(points).index_copy(0, running, self.flat.flatten(gradient))

    def _finite(self) -> Tensor:
        return self.value.isfinite() & self.gradient.isfinite().all(1)

    def _project(self, flat: Tensor) -> Tensor:
        """In the state's own type, so that the coordinates inside the box are not rounded."""
        return self.flat.flatten(self.objective.project(self.flat.split(flat)))
