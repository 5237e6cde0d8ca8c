"""L-BFGS with a state of its own for every row.

PyTorch's L-BFGS treats all its parameters as one problem: one history, one step length, one stopping rule. Here each of
R rows has its own, so that attacking R updates together gives each what it would get alone. In exact arithmetic a row
follows `torch.optim.LBFGS` (no line search) step for step; a test holds the two together in float64.
"""

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.progress import Step, report
from gibench.search.base import Search
from gibench.search.history import History
from gibench.search.objective import Objective, Variables


class LBFGS(Search):
    """Limited-memory BFGS (Liu and Nocedal 1989) without line search, as DLG and iDLG use it.

    `steps` calls of up to `iterations` iterations each, one evaluation an iteration. A row leaves the current call when
    its derivative, its step or the change of its value falls below the tolerances, and goes on in the next; it is
    finished for good when it is not finite, when it can no longer descend, or when its value is below `target`.

    Args:
        steps: calls ("outer iterations" in the papers).
        rate: step length; the first step ever is shortened to min(1, 1/|gradient|_1) * rate.
        iterations: at most, in one call.
        history: pairs that the curvature is estimated from.
        tolerance_gradient, tolerance_change: absolute, as in PyTorch; small gradients stop it early.
        target: stop a row whose value is below, tested after every call; None goes on.
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
    ) -> None:
        super().__init__()
        if min(steps, iterations, history) < 1 or rate <= 0:
            raise ConfigurationError("L-BFGS needs steps, iterations and history of at least 1 and rate > 0.")
        self.steps = steps
        self.rate = rate
        self.iterations = iterations
        self.history = history
        self.tolerance_gradient = tolerance_gradient
        self.tolerance_change = tolerance_change
        self.target = target
        self.state_copies = 2 * history + 8
        self.evaluations = 1 + steps * iterations

    def forward(self, objective: Objective, start: Variables) -> None:
        """See `Search`."""
        rows = _Rows(self, objective, start)
        for step in range(self.steps):
            running = rows.alive & (rows.gradient.abs().amax(1) > self.tolerance_gradient)
            rows.alive = running
            if not running.any():
                break
            for _ in range(self.iterations):
                running = rows.iterate(running)
                if not running.any():
                    break
            if self.target is not None:
                rows.alive = rows.alive & (rows.value >= self.target)
            report(Step(step + 1, self.steps, rows.value, rows.images))


class _Rows:
    """The iterates of all rows, and one iteration of those that are running."""

    def __init__(self, settings: LBFGS, objective: Objective, start: Variables) -> None:
        self.settings, self.objective = settings, objective
        self.shapes = {name: value.shape for name, value in start.items()}
        self.point = self._flatten(start)
        self.history = History(self.point, settings.history)
        self.moved = torch.zeros_like(self.point)
        self.fresh = self.alive = torch.ones(len(self.point), dtype=torch.bool, device=self.point.device)
        value, gradient = objective(start)
        self.value, self.gradient = value, self._flatten(gradient)
        self.previous = self.gradient
        self._bury()

    def iterate(self, running: Tensor) -> Tensor:
        """Move the running rows once and return those that go on in this call."""
        settings = self.settings
        running = running & self.alive
        self.history.add(self.moved, self.gradient - self.previous, running & ~self.fresh)
        direction = -self.history.apply(self.gradient)
        first = (1 / self.gradient.abs().sum(1)).clamp(max=1) * settings.rate
        length = torch.where(self.fresh, first, settings.rate)
        slope = (self.gradient * direction).sum(1)
        stuck = running & (slope > -settings.tolerance_change)
        self.alive = self.alive & ~stuck
        running = running & ~stuck
        self.fresh = self.fresh & ~running

        target = self._flatten(self.objective.project(self._unflatten(self.point + length[:, None] * direction)))
        self.moved = torch.where(running[:, None], target - self.point, self.moved)
        self.point = torch.where(running[:, None], target, self.point)
        before = self.value
        value, gradient = self.objective(self._unflatten(self.point), running)
        self.previous = torch.where(running[:, None], self.gradient, self.previous)
        self.value = torch.where(running, value, self.value)
        self.gradient = torch.where(running[:, None], self._flatten(gradient), self.gradient)
        self._bury()
        small = self.gradient.abs().amax(1) <= settings.tolerance_gradient
        small |= self.moved.abs().amax(1) <= settings.tolerance_change
        small |= (self.value - before).abs() < settings.tolerance_change
        return running & self.alive & ~small

    def images(self) -> Tensor:
        """The images that the rows stand for now."""
        return self.objective.decode(self._unflatten(self.point)).images

    def _bury(self) -> None:
        self.alive = self.alive & self.value.isfinite() & self.gradient.isfinite().all(1)

    @staticmethod
    def _flatten(variables: Variables) -> Tensor:
        return torch.cat([value.detach().flatten(1) for value in variables.values()], 1)

    def _unflatten(self, flat: Tensor) -> Variables:
        pieces = flat.split([shape[1:].numel() for shape in self.shapes.values()], 1)
        return {name: piece.reshape(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}
