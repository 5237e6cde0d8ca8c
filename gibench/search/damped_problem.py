"""One row of a Levenberg-Marquardt search: its point, its damping, and the step that both lead to."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gibench.search.conjugate_gradients import conjugate_gradients
from gibench.search.flat import Flat
from gibench.search.linearization import Linearization
from gibench.search.objective import Objective
from gibench.search.preconditioners import Full, Inverse, LowRank, Preconditioner

if TYPE_CHECKING:
    from gibench.search.levenberg_marquardt import LevenbergMarquardt

GOOD, POOR = 0.75, 0.25  # gain ratios
LOWER, RAISE, REJECTED = 0.1, 2.0, 4.0  # factors on the damping
LARGEST = 1e12  # damping; a step that has to be shorter is none
FORCING = 1e-3  # tolerance of the inner solution far from the optimum; with 0.1 most steps fail
FRESH = 40  # products with a new factor, above which it is too rough
TIRED = 60  # products after which the preconditioner is made anew
TURNS = 6  # solutions of a step that leaves the box
EDGE = 1e-12  # in the units of the variable
SETTLED = 1.0  # damping
SHORTEST = 2.0**-8  # part of an anchored step
FLAT = 1e-5  # promised gain, relative to the value, below which a row is finished


class DampedProblem:
    """One row: where it is, how much it is damped, and what it multiplies with."""

    def __init__(
        self, settings: "LevenbergMarquardt", objective: Objective, row: int, flat: Flat, point: Tensor
    ) -> None:
        self.settings, self.objective, self.row, self.flat = settings, objective, row, flat
        self.point, self.gradient = point, torch.zeros_like(point)
        self.value = self.steepest = math.inf
        self.damping, self.growth = settings.damping, REJECTED
        self.start, self.length = point, 1.0
        self.at = self._linearize(point)
        self.preconditioner: Preconditioner | None = None
        self.age = self.products = 0
        self._solved = self._finite = True
        self._rounded = settings.normal == "full" and settings.single
        self.target, self.predicted, self._scale = point, 0.0, torch.zeros_like(point)
        self._step = self._change = self._scale
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

    def propose(self) -> None:
        """Find the target of the next step, (n,), and what the model promises there; end where there is none."""
        at, settings = self.at, self.settings
        if self.length < 1:
            self._promise()
            return
        stale = self.age > 0 and (self.age >= settings.refresh or self.products > TIRED)
        if self.preconditioner is None or stale:
            self.preconditioner = self._precondition()
            self.age = 0
        everywhere = torch.ones_like(self.point, dtype=torch.bool)
        inverse, singular = self.preconditioner.inverse(self.damping)
        step = self._solve(-self._slope(), everywhere, inverse)
        if self._rounded and (singular or (self.age == 0 and self.products > FRESH)):
            self._rounded = False  # float32 has lost the small end of the spectrum
            self.preconditioner, self.age = self._precondition(), 0
            inverse, singular = self.preconditioner.inverse(self.damping)
            step = self._solve(-self._slope(), everywhere, inverse)
        self._step = self._inside(step, inverse)
        self.proposals += 1
        self.singular += singular
        self._change = at.push(self._step)
        self.objective.count(self.row, 2)  # and the graphs of this point's products
        self._promise()
        if not (self._finite and math.isfinite(self.predicted)):
            self.end(f"a product with the Jacobian was not finite after {self.proposals} steps")

    def _promise(self) -> None:
        """Set the target, and what the model says is gained there."""
        step, change = self.length * self._step, self.length * self._change
        self.target = self.point + step
        self.predicted = self._pull(self.point) - self._pull(self.target)
        self.predicted -= float(self.gradient @ step + change.square().sum() / 2)

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
            right = -(self._slope() + self.at.times(fixed)) * free
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
        settings = self.settings
        moved = float((self.target - self.point).abs().max())
        gained = self.value - value + self._pull(self.point) - self._pull(self.target)
        taken = gained > 0 and bool(gradient.isfinite().all())
        flat = taken and self.predicted < FLAT * (self.value + self._pull(self.point))
        whole = self.damping <= SETTLED and self.length == 1  # a shortened step says nothing of the optimum
        settled = whole and self._solved and (flat or moved <= settings.tolerance)
        done = settled and (settings.anchor is None or self.damping <= settings.anchor)
        if taken:
            self._redamp(gained / self.predicted if self.predicted > 0 else 0.0)
            self.point, self.value, self.gradient = self.target, value, gradient
            self.at = self._linearize(self.point)
            self.age += 1
        elif settings.anchor is not None:
            self.length /= 1 if settled else 2
        else:
            self.damping *= self.growth
            self.growth *= 2
        if settled and settings.anchor is not None:
            self.damping = max(LOWER * self.damping, settings.anchor)
        below = settings.target is not None and self.value < settings.target
        if below or done:
            self.end()
        elif self.damping > LARGEST or self.length < SHORTEST:
            self.end("no step lowers the objective")

    def _redamp(self, gain: float) -> None:
        """Choose the damping after a step that was taken, by its gain ratio."""
        anchor = self.settings.anchor
        if gain > GOOD and (anchor is None or self.length == 1):
            self.damping = max(LOWER * self.damping, anchor or 0.0)
        elif gain < POOR and anchor is None:
            self.damping *= RAISE
        self.growth, self.length = REJECTED, 1.0

    def _pull(self, point: Tensor) -> float:
        """What an anchor adds to the value at a point."""
        if self.settings.anchor is None:
            return 0.0
        return self.damping / 2 * float(self._scale @ (point - self.start).square())

    def _slope(self) -> Tensor:
        """The derivative of value and pull."""
        if self.settings.anchor is None:
            return self.gradient
        return self.gradient + self.damping * self._scale * (self.point - self.start)

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
