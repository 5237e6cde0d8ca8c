"""A search minimizes an objective over variables whose rows are independent problems."""

from abc import ABC, abstractmethod

from torch import nn

from gibench.search.evaluation import Variables
from gibench.search.objective import Objective


class Search(nn.Module, ABC):
    """Minimize R independent problems at once; a row's result does not depend on the other rows."""

    state_copies: int
    """How many tensors of the size of the variables the search holds; for the memory budget."""

    evaluations: int
    """How often the search evaluates a row at most; for the estimate of its cost."""

    fixed_rows = False
    """Whether it evaluates all rows together most of the time, so that compiling for that number may repay."""

    @abstractmethod
    def forward(self, objective: Objective, start: Variables) -> None:
        """Evaluate `objective` from `start` on as often as it takes; the objective keeps the best of each row.

        Args:
            objective: (variables, rows) -> values and their derivative, for all R rows or for the given ones; it counts
                evaluations and projects.
            start: name -> (R, *shape).
        """
