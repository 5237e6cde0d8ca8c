"""Levenberg-Marquardt: nonlinear least squares on the update's residual, many problems side by side."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gibench.errors import ConfigurationError, RefusalError
from gibench.progress import Step, report
from gibench.search.base import Search
from gibench.search.conjugate_gradients import conjugate_gradients
from gibench.search.evaluation import Variables
from gibench.search.flat import Flat
from gibench.search.linearization import Linearization
from gibench.search.objective import Objective
from gibench.search.preconditioners import Full, Inverse, LowRank, Preconditioner, full_bytes

Normal = Literal["full", "low_rank"]

GOOD, POOR = 0.75, 0.25  # gain ratios
LOWER, RAISE, REJECTED = 0.1, 2.0, 4.0  # factors on the damping
LARGEST = 1e12  # damping; a step that has to be shorter is none
FORCING = 1e-3  # tolerance of the inner solution far from the optimum; with 0.1 most steps fail
FRESH = 40  # products with a new factor, above which it is too rough
TIRED = 60  # products after which the preconditioner is made anew
TURNS = 6  # solutions of a step that leaves the box
EDGE = 1e-12  # in the units of the variable
SETTLED = 1.0  # damping
FLAT = 1e-5  # promised gain, relative to the value, below which a row is finished
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
    point, or of low rank: it decides the speed, not the answer. Each row has its own lambda and its own course.

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
            RefusalError: in mixed precision; where the victim has no forward derivative.
            ConfigurationError: a likelihood or prior has no least-squares form.
        """
        if objective.autocast is not None:
            raise RefusalError("Levenberg-Marquardt needs derivatives that are not rounded; use 32-true or 64-true.")
        flat = Flat(start, torch.float64)
        value, gradient = objective(start, None)
        points, slopes = flat.flatten(start), flat.flatten(gradient)
        problems = [_Problem(self, objective, row, flat, points[row]) for row in range(len(points))]
        for row, problem in enumerate(problems):
            problem.begin(float(value[row]), slopes[row])
        for step in range(self.steps):
            running = [problem for problem in problems if problem.alive]
            targets = [problem.propose() for problem in running]
            running = [problem for problem in running if problem.alive]
            if not running:
                break
            rows = torch.tensor([problem.row for problem in running], device=points.device)
            landed = torch.stack([target for target in targets if target is not None])
            value, gradient = objective(flat.unflatten(landed), rows)
            slopes = flat.flatten(gradient)
            for index, problem in enumerate(running):
                problem.judge(float(value[index]), slopes[index])
            values = value.new_tensor([problem.value for problem in problems])
            report(Step(step + 1, self.steps, values, lambda: _images(objective, flat, problems)))
        for problem in problems:
            problem.end(f"still moving after {self.steps} steps")


class _Problem:
    """One row: where it is, how much it is damped, and what it multiplies with."""

    def __init__(self, settings: LevenbergMarquardt, objective: Objective, row: int, flat: Flat, point: Tensor) -> None:
        self.settings, self.objective, self.row, self.flat = settings, objective, row, flat
        self.point, self.gradient = point, torch.zeros_like(point)
        self.value = self.steepest = math.inf
        self.damping, self.growth = settings.damping, REJECTED
        self.at = self._linearize(point)
        self.preconditioner: Preconditioner | None = None
        self.age = self.products = 0
        self._solved = self._finite = True
        self._rounded = settings.normal == "full" and settings.single
        self.target, self.predicted, self._scale = point, 0.0, point
        self.proposals = self.singular = 0
        self.alive = True

    def begin(self, value: float, gradient: Tensor) -> None:
        """Take the value at the start, unless there is nothing to search for."""
        self.value, self.gradient = value, gradient
        self.steepest = float(gradient.norm())
        lacking = self._lacking()
        if lacking:
            self.objective.refuse(self.row, lacking)
            self.alive = False
        elif not (math.isfinite(value) and math.isfinite(self.steepest)):
            self.end("the update of the start is not finite")
        elif not self.steepest:
            self.end("the derivative at the start is zero")

    def propose(self) -> Tensor | None:
        """Return the point that the next step would reach, (n,); None where there is none."""
        at, settings = self.at, self.settings
        stale = self.age > 0 and (self.age >= settings.refresh or self.products > TIRED)
        if self.preconditioner is None or stale:
            self.preconditioner = self._precondition()
            self.age = 0
        everywhere = torch.ones_like(self.point, dtype=torch.bool)
        inverse, singular = self.preconditioner.inverse(self.damping)
        step = self._solve(-self.gradient, everywhere, inverse)
        if self._rounded and (singular or (self.age == 0 and self.products > FRESH)):
            self._rounded = False  # float32 has lost the small end of the spectrum
            self.preconditioner, self.age = self._precondition(), 0
            inverse, singular = self.preconditioner.inverse(self.damping)
            step = self._solve(-self.gradient, everywhere, inverse)
        step = self._inside(step, inverse)
        self.proposals += 1
        self.singular += singular
        change = at.push(step)
        self.objective.count(self.row, 2)  # and the graphs of this point's products
        self.target = self.point + step
        self.predicted = -float(self.gradient @ step + change.square().sum() / 2)
        if not (self._finite and math.isfinite(self.predicted)):
            self.end(f"a product with the Jacobian was not finite after {self.proposals} steps")
            return None
        return self.target

    def _inside(self, step: Tensor, inverse: Inverse) -> Tensor:
        """The step in the box: what would leave it is put on its edge, and the others are solved for anew.

        What a cut takes from a step, a second-order step cannot spare: where directions leave no trace, one that is
        only cut off hardly gains anything.
        """
        held = torch.zeros_like(self.point, dtype=torch.bool)
        for _ in range(TURNS):
            cut = self._project(self.point + step) - self.point
            leaving = ((cut - step).abs() > EDGE) & ~held
            if not leaving.any() or not torch.isfinite(cut).all():
                return cut
            held |= leaving
            fixed = torch.where(held, cut, 0.0)
            free = ~held
            self.objective.count(self.row, 2)
            right = -(self.gradient + self.at.times(fixed)) * free
            step = torch.where(held, fixed, self._solve(right, free, inverse))
        return self._project(self.point + step) - self.point

    def _solve(self, right: Tensor, free: Tensor, inverse: Inverse) -> Tensor:
        """Solve the damped system for the free variables; the others stay zero."""
        at, damp = self.at, self.damping * self._scale
        found = conjugate_gradients(
            lambda direction: free * (at.times(direction) + damp * direction),
            right,
            lambda rest: free * inverse(rest),
            tolerance=min(FORCING, float(self.gradient.norm()) / self.steepest),
            iterations=self.settings.inner,
        )
        self.products, self._solved = found.iterations, found.converged
        self._finite &= found.finite
        self.objective.count(self.row, 2 * found.iterations)
        return found.x

    def judge(self, value: float, gradient: Tensor) -> None:
        """Take the step or not, by what it really gained."""
        moved = float((self.target - self.point).abs().max())
        taken = math.isfinite(value) and value < self.value and bool(gradient.isfinite().all())
        flat = taken and self.predicted < FLAT * self.value
        undamped = self.damping <= SETTLED  # a step that damping has shortened says nothing of the optimum
        if taken:
            gain = (self.value - value) / self.predicted if self.predicted > 0 else 0.0
            self.damping *= LOWER if gain > GOOD else RAISE if gain < POOR else 1.0
            self.growth = REJECTED
            self.point, self.value, self.gradient = self.target, value, gradient
            self.at = self._linearize(self.point)
            self.age += 1
        else:
            self.damping *= self.growth
            self.growth *= 2
        below = self.settings.target is not None and self.value < self.settings.target
        if below or (undamped and self._solved and (flat or moved <= self.settings.tolerance)):
            self.end()
        elif self.damping > LARGEST:
            self.end("no step lowers the objective")

    def _linearize(self, point: Tensor) -> Linearization:
        return Linearization(self.objective, self.row, self.flat, point, single=self.settings.single)

    def _precondition(self) -> Preconditioner:
        settings = self.settings
        made: Preconditioner
        if settings.normal == "full":
            made = Full(self.at, double=not self._rounded, buckets=settings.buckets)
        else:
            made = LowRank(self.at, rank=settings.rank, seed=self.objective.seeds[self.row])
        self.objective.count(self.row, made.evaluations)
        self._scale = made.scale
        self._finite &= bool(made.scale.isfinite().all())
        return made

    def _project(self, point: Tensor) -> Tensor:
        return self.flat.flatten(self.objective.project(self.flat.split(point[None])))[0]

    def _lacking(self) -> str | None:
        """Say why there can be no unique answer: fewer equations than unknowns."""
        informative, unknowns = self.at.informative, len(self.point)
        if self.at.has_priors or informative >= unknowns:
            return None
        return (
            f"the update has {informative:,} coordinates for {unknowns:,} unknowns, so that a null space of at least "
            f"{unknowns - informative:,} directions leaves no trace; add a prior, or search fewer unknowns."
        )

    def end(self, why: str | None = None) -> None:
        """Leave the search, and say what the row ran into."""
        if not self.alive:
            return
        self.alive = False
        self.preconditioner = None  # its memory
        self.at.release()
        remarks = [why] if why else []
        if self.singular:
            remarks.append(
                f"the normal equations were singular to working precision in {self.singular} of {self.proposals} steps"
            )
        self.objective.remarks[self.row] = "; ".join(remarks) or None


def _images(objective: Objective, flat: Flat, problems: list[_Problem]) -> Tensor:
    points = torch.stack([problem.point for problem in problems])
    return objective.decode(flat.unflatten(points)).images
