"""Covariance matrix adaptation: a search that asks for values alone."""

from functools import partial

import numpy as np
import torch
from cmaes import CMA
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.progress import Step, report
from gibench.search.base import Search
from gibench.search.evaluation import Variables
from gibench.search.flat import Flat
from gibench.search.objective import Objective


class CMAES(Search):
    """CMA-ES (Hansen, "The CMA Evolution Strategy: A Tutorial", 2016), of each row its own, with the `cmaes` package.

    It needs no derivative, so that an update may be compared in any way; each candidate costs one simulated update. It
    is for few unknowns, a generator's latents: the covariance has their square. The j-th candidates of all rows are
    evaluated together.

    Args:
        steps: generations.
        population: candidates of a generation.
        sigma: standard deviation of the first generation, about the start, in the units of the variable.
    """

    state_copies = 4

    def __init__(self, *, steps: int, population: int = 50, sigma: float = 1.0) -> None:
        super().__init__()
        if steps < 1 or population < 4 or not sigma > 0:
            raise ConfigurationError(
                f"CMA-ES needs steps >= 1, population >= 4 and sigma > 0; got {steps}, {population} and {sigma}."
            )
        self.steps = steps
        self.population = population
        self.sigma = sigma
        self.evaluations = steps * population

    def bytes_per_row(self, unknowns: int, observations: int, element: int) -> int:
        """See `Search`: the covariance and its eigenvectors, in float64."""
        return 8 * unknowns * (self.state_copies * unknowns + 3 * self.population)

    def forward(self, objective: Objective, start: Variables) -> None:
        """See `Search`."""
        flat = Flat(start, torch.float64)
        points = flat.flatten(start).cpu().numpy()
        device = next(iter(start.values())).device
        rows = [
            CMA(mean=point, sigma=self.sigma, seed=seed % 2**32, population_size=self.population)
            for point, seed in zip(points, objective.seeds, strict=True)
        ]
        last = objective.project(start)
        for step in range(self.steps):
            asked: list[list[np.ndarray]] = [[] for _ in rows]
            values: list[np.ndarray] = []
            for _ in range(self.population):
                for own, row in zip(asked, rows, strict=True):
                    own.append(row.ask())
                candidate = torch.from_numpy(np.stack([own[-1] for own in asked])).to(device)
                last = objective.project(flat.unflatten(candidate))
                found = objective(last, slopes=False).value
                values.append(found.double().nan_to_num(nan=torch.inf).cpu().numpy())
            for index, (row, own) in enumerate(zip(rows, asked, strict=True)):
                row.tell([(point, float(value[index])) for point, value in zip(own, values, strict=True)])
            report(Step(step + 1, self.steps, objective.value, partial(_images, objective, last)))


def _images(objective: Objective, variables: Variables) -> Tensor:
    return objective.decode(variables).images
