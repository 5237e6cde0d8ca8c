"""Levenberg-Marquardt: nonlinear least squares on the update's residual."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gibench.errors import ConfigurationError, RefusalError
from gibench.progress import Step, report
from gibench.search.base import Search
from gibench.search.damped_problem import DampedProblem
from gibench.search.evaluation import Variables
from gibench.search.flat import Flat
from gibench.search.objective import Objective
from gibench.search.preconditioners import full_bytes

Normal = Literal["full", "low_rank"]

BATCHED = 16  # columns that cost as much as one product


class LevenbergMarquardt(Search):
    r"""Damped Gauss-Newton steps (Levenberg 1944, Marquardt 1963) on F(v) = |r(v)|^2 / 2, likelihood and priors.

    .. math:: (J^T J + \lambda D) d = -J^T r, \qquad v \leftarrow \Pi(v + d)

    r are the rows that the likelihood and the priors give (`Likelihood.residuals`), J = dr/dv, D the mean diagonal
    entry of J^T J in each variable, and Pi the projection into the box. With the gain ratio rho, what F fell by over
    what the quadratic model promised for the projected step, a step that lowers F is taken; lambda is multiplied by 0.1
    where rho > 0.75, by 2 where rho < 0.25, and by 4, 8, 16, .. after steps that are not taken.

    The system is solved by conjugate gradients, whose products with J are exact, in the type of the run, and whose
    preconditioner is an approximate inverse that may be computed in float32, from a hashed Jacobian, at an earlier
    point, or of low rank: it decides the speed, not the answer. Each row has its own lambda and its own course. Values
    are computed for all rows together; the linear algebra of one row fills a processor, and goes row by row.

    With an `anchor`, lambda pulls to the start v0 instead of to the last point (iteratively regularized Gauss-Newton,
    Bakushinskii 1992):

    .. math:: (J^T J + \lambda D) d = -J^T r - \lambda D (v - v_0)

    A step that does not lower F + lambda |v - v0|_D^2 / 2 is halved, and lambda falls, down to `anchor`, after whole
    steps with rho > 0.75. It is for problems where directions leave no trace or nearly none: there the early steps of
    the plain method, far from the linear, leave what no later step takes back; anchored, these directions return to
    the start.

    In a box, what a step would carry out of it is put on its edge and the rest is solved for anew, up to six times.

    A row is finished when its step is below `tolerance` or promises less than 1e-5 of its value, when its value is
    below `target`, when no step lowers it, or when something is not finite; what a row ran into is recorded with its
    answer. A victim with kinks (ReLU, max pooling) has an update that jumps where an activation flips, and a search
    that gets stuck there: see `gibench.attacks.Continuation`.

    Args:
        steps: steps, taken or not.
        damping: lambda at the start.
        normal: "full", the Cholesky factor of J^T J from one forward derivative per unknown (n^2 numbers); "low_rank",
            a Nystrom approximation from `rank` random directions, for ten thousand unknowns and more.
        single: columns of "full" in float32, and the factor, as long as that serves.
        buckets: for each unknown; updates of more coordinates are hashed to so many for the factor. None never hashes.
        rank: of "low_rank".
        refresh: steps taken before the preconditioner is made anew; it is also when it no longer serves.
        inner: products of a step, at most.
        tolerance: in the units of the variable.
        target: of F; None goes on.
        anchor: the least lambda, where it pulls to the start; 1e-8 for pixels. None pulls to the last point.
    """

    least_squares = True
    state_copies = 12

    def __init__(
        self,
        *,
        steps: int = 60,
        damping: float = 1e-2,
        normal: Normal = "full",
        single: bool = True,
        buckets: float | None = 6.0,
        rank: int = 200,
        refresh: int = 5,
        inner: int = 200,
        tolerance: float = 1e-4,
        target: float | None = None,
        anchor: float | None = None,
    ) -> None:
        super().__init__()
        if min(steps, rank, refresh, inner) < 1 or not damping > 0 or not tolerance >= 0:
            raise ConfigurationError(
                f"Levenberg-Marquardt needs steps, rank, refresh and inner >= 1, damping > 0 and tolerance >= 0; got "
                f"{steps}, {rank}, {refresh}, {inner}, {damping} and {tolerance}."
            )
        if normal not in get_args(Normal):
            raise ConfigurationError(f"normal is {normal!r}; choose one of {', '.join(get_args(Normal))}.")
        if buckets is not None and not buckets > 1:
            raise ConfigurationError(f"buckets is {buckets}; hash to more than 1 for each unknown, or set it to null.")
        if anchor is not None and not 0 < anchor <= damping:
            raise ConfigurationError(f"anchor is {anchor}; choose one above 0 and at most the damping, {damping}.")
        self.steps = steps
        self.damping = damping
        self.normal = normal
        self.single = single
        self.buckets = buckets
        self.rank = rank
        self.refresh = refresh
        self.inner = inner
        self.tolerance = tolerance
        self.target = target
        self.anchor = anchor

    def work(self, unknowns: int) -> int:
        """See `Search`."""
        making = unknowns / BATCHED if self.normal == "full" else 2 * self.rank
        return math.ceil(self.steps * (1 + 2 * self.inner + making / self.refresh))

    def bytes_per_row(self, unknowns: int, observations: int, element: int) -> int:
        """See `Search`."""
        if self.normal == "low_rank":
            return element * (self.state_copies + 4 * self.rank) * unknowns
        return element * self.state_copies * unknowns + full_bytes(unknowns, observations, self.buckets)

    def forward(self, objective: Objective, start: Variables) -> None:
        """See `Search`.

        Raises:
            RefusalError: in mixed precision; on MPS; where the victim has no forward derivative.
            ConfigurationError: a likelihood or prior has no least-squares form.
        """
        if objective.autocast is not None:
            raise RefusalError("Levenberg-Marquardt needs derivatives that are not rounded; use 32-true or 64-true.")
        check_device(next(iter(start.values())).device)
        flat = Flat(start, torch.float64)
        value, gradient = objective(start, None)
        points, slopes = flat.flatten(start), flat.flatten(gradient)
        problems = [DampedProblem(self, objective, row, flat, points[row]) for row in range(len(points))]
        for row, problem in enumerate(problems):
            problem.begin(float(value[row]), slopes[row])
        for step in range(self.steps):
            for problem in problems:
                if problem.alive:
                    problem.propose()
            running = [problem for problem in problems if problem.alive]
            if not running:
                break
            rows = torch.tensor([problem.row for problem in running], device=points.device)
            targets = torch.stack([problem.target for problem in running])
            value, gradient = objective(flat.unflatten(targets), rows)
            slopes = flat.flatten(gradient)
            for index, problem in enumerate(running):
                problem.judge(float(value[index]), slopes[index])
            values = value.new_tensor([problem.value for problem in problems])
            report(Step(step + 1, self.steps, values, lambda: _images(objective, flat, problems)))
        for problem in problems:
            problem.end(f"still moving after {self.steps} steps")


def check_device(device: torch.device) -> None:
    """Raise RefusalError where the device cannot hold the state."""
    if device.type == "mps":
        raise RefusalError("Levenberg-Marquardt keeps its state in float64, which MPS lacks; use --accelerator cpu.")


def _images(objective: Objective, flat: Flat, problems: list[DampedProblem]) -> Tensor:
    points = torch.stack([problem.point for problem in problems])
    return objective.decode(flat.unflatten(points)).images
