"""A search minimizes an objective over variables whose rows are independent problems."""

from abc import ABC, abstractmethod

from torch import nn

from gibench.search.evaluation import Variables
from gibench.search.objective import Objective


class Search(nn.Module, ABC):
    """Minimize R independent problems at once; a row's result does not depend on the other rows."""

    steps: int
    """Iterations, at most."""

    state_copies: int
    """How many tensors of the size of the variables the search holds; for the memory budget."""

    evaluations: int
    """How often the search evaluates a row at most, where that does not depend on the unknowns; see `work`."""

    least_squares = False
    """Whether it reads the residual rows of likelihood and priors, and so has to see all that there is."""

    fixed_rows = False
    """Whether it evaluates all rows together most of the time, so that compiling for that number may repay."""

    def work(self, unknowns: int) -> int:
        """How many evaluations of a row its time is worth at most, for so many unknowns; for the estimate of cost."""
        return self.evaluations

    def bytes_per_row(self, unknowns: int, observations: int, element: int) -> int:
        """What the search holds for a row; for the memory budget.

        Args:
            unknowns: entries of the variables.
            observations: coordinates of the update.
            element: bytes of a number.
        """
        return element * self.state_copies * unknowns

    @abstractmethod
    def forward(self, objective: Objective, start: Variables) -> None:
        """Evaluate `objective` from `start` on as often as it takes; the objective keeps the best of each row.

        Args:
            objective: (variables, rows) -> values and their derivative, for all R rows or for the given ones; it counts
                evaluations and projects.
            start: name -> (R, *shape).
        """
