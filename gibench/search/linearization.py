"""The residual rows of one problem near a point, and products with their Jacobian."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from gibench.engine.gradient import in_single
from gibench.errors import RefusalError
from gibench.search.evaluation import Known
from gibench.search.flat import Flat
from gibench.search.objective import Objective
from gibench.types import Simulate, Update


class Simulation(NamedTuple):
    """The client's update in one type, and what is observed in it."""

    simulate: Simulate
    known: Known


class Linearization:
    r"""r(v + d) = r(v) + J d for one row of an objective, likelihood and priors together.

    J^T r is the derivative of the objective (see `Likelihood.residuals`). Products with single vectors are exact, in
    the type of the objective: J^T u is a reverse pass, and J d the derivative of J^T u for u, another one, which is a
    fifth of a forward pass. They are good to the last digits along directions that hardly move the update, too, which
    those of J^T J as a matrix are not. Many columns at once are forward passes over reverse ones.

    Args:
        objective: of the problem.
        row: which of its rows.
        flat: how the variables lie in a vector.
        point: (n,), v.
        single: compute columns in float32, where the client's update is known to be a gradient of the victim.
    """

    def __init__(self, objective: Objective, row: int, flat: Flat, point: Tensor, *, single: bool) -> None:
        self.point = point
        self._flat, self._objective = flat, objective
        part = objective.part(torch.tensor([row], device=point.device))
        self._observation = part.observation
        self._exact = self._rounded = Simulation(objective.observation.simulate, part.known)
        simulate = in_single(objective.observation.simulate) if single else None
        if simulate is not None:
            update = {name: value.float() for name, value in part.known.update.items()}
            self._rounded = Simulation(simulate, part.known._replace(update=update))
        self._graph: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def unknowns(self) -> int:
        """Entries of the point."""
        return self.point.numel()

    @property
    def observations(self) -> int:
        """How many coordinates the update has."""
        return sum(value.numel() for value in self._exact.known.update.values())

    @property
    def batch_size(self) -> int:
        """B."""
        return self._objective.observation.known_batch_size()

    @property
    def informative(self) -> int:
        """How many coordinates of the update the likelihood compares."""
        return int(self._objective.likelihood.informative(self._exact.known.update))

    @property
    def has_priors(self) -> bool:
        """Whether there are rows besides the likelihood's, and with a weight."""
        return self._objective.penalized or any(getattr(prior, "weight", 1) > 0 for prior in self._objective.priors)

    def mean_by_variable(self, values: Tensor) -> Tensor:
        """Replace each of (n,) by the mean over its variable: pixels and labels have their own units."""
        return torch.cat([part.mean().expand(len(part)) for part in values.split(self._flat.sizes)])

    def push(self, direction: Tensor) -> Tensor:
        """J d of (n,), all rows."""
        _, _, seed, slope = self._differentiate()
        (change,) = torch.autograd.grad(slope, seed, direction, retain_graph=True)
        return change

    def pull(self, change: Tensor) -> Tensor:
        """J^T u of (M,)."""
        leaf, rows, _, _ = self._differentiate()
        (slope,) = torch.autograd.grad(rows, leaf, change, retain_graph=True)
        return slope

    def times(self, direction: Tensor) -> Tensor:
        """J^T J d of (n,): two evaluations."""
        return self.pull(self.push(direction))

    def columns(self, directions: Tensor) -> Update:
        """J d of the likelihood's rows alone for k directions (k, n), name -> (k, ...)."""

        def rows(point: Tensor) -> Update:
            return self._likelihood_rows(point, self._rounded)

        try:
            with torch.no_grad():
                changes: Update = vmap(lambda d: jvp(rows, (self.point,), (d,))[1])(directions)
        except NotImplementedError as error:
            raise RefusalError(
                f"the victim has an operation without a forward derivative ({str(error).splitlines()[0]}); replace it, "
                "or set the search's `normal` to 'low_rank'."
            ) from error
        return changes

    def prior_times(self, directions: Tensor) -> Tensor:
        """J^T J d of the priors' rows alone for k directions (k, n)."""
        pull = vjp(self._prior_rows, self.point)[1]
        with torch.no_grad():
            products: Tensor = vmap(lambda d: pull(jvp(self._prior_rows, (self.point,), (d,))[1])[0])(directions)
        return products

    def release(self) -> None:
        """Let go of the graphs of products; another product makes them anew."""
        self._graph = None

    def simulated(self) -> Update:
        """The update at the point, name -> (1, *shape)."""
        with torch.no_grad():
            return self._simulated(self.point, self._exact)

    def _differentiate(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The point, r there, a vector u, and J^T u, whose derivative for u is J: the graphs of all products."""
        if self._graph is None:
            with torch.enable_grad():
                leaf = self.point.detach().requires_grad_()
                rows = self._rows(leaf)
                seed = torch.zeros_like(rows, requires_grad=True)
                (slope,) = torch.autograd.grad(rows, leaf, seed, create_graph=True)
            self._graph = leaf, rows, seed, slope
        return self._graph

    def _simulated(self, point: Tensor, by: Simulation) -> Update:
        return self._objective.simulated(self._flat.unflatten(point[None]), by.known, by.simulate)

    def _likelihood_rows(self, point: Tensor, by: Simulation) -> Update:
        found = self._objective.likelihood.residuals(self._simulated(point, by), by.known.update)
        return {name: value[0] for name, value in found.items()}

    def _prior_rows(self, point: Tensor) -> Tensor:
        variables = self._flat.unflatten(point[None])
        found = self._objective.prior_residuals(variables, self._exact.known, self._observation)
        return torch.cat([value.flatten() for value in found])

    def _rows(self, point: Tensor) -> Tensor:
        parts = [value.flatten() for value in self._likelihood_rows(point, self._exact).values()]
        return torch.cat([*parts, self._prior_rows(point)] if self.has_priors else parts)
