"""Adam, with the gradient or with its sign, and the schedules of the papers."""

from typing import Literal

import torch

from gibench.errors import ConfigurationError
from gibench.progress import Step, report
from gibench.search.base import Search
from gibench.search.objective import Objective, Variables

IG_MILESTONES = (2.667, 1.6, 1.142)  # the divisors in the published code: about 3/8, 5/8 and 7/8 of the steps


class Adam(Search):
    """Adam (Kingma and Ba 2015), betas 0.9 and 0.999, on every row at once.

    Args:
        steps: iterations.
        rate: step size, in the units of the variable.
        signed: replace the gradient by its sign first, as Inverting Gradients does; with Adam on top each step then has
            a length of about `rate` in every coordinate, and the schedule alone decides when it settles.
        schedule: "step", times 0.1 after floor(steps/2.667), floor(steps/1.6) and floor(steps/1.142) (IG);
            "constant".
    """

    state_copies = 8

    def __init__(
        self, *, steps: int, rate: float = 0.1, signed: bool = False, schedule: Literal["step", "constant"] = "step"
    ) -> None:
        super().__init__()
        if steps < 1 or rate <= 0:
            raise ConfigurationError(f"Adam needs steps >= 1 and rate > 0; got {steps} and {rate}.")
        self.steps = self.evaluations = steps
        self.rate = rate
        self.signed = signed
        self.schedule = schedule

    def forward(self, objective: Objective, start: Variables) -> None:
        """See `Search`."""
        variables = {name: value.clone() for name, value in start.items()}
        optimizer = torch.optim.Adam(list(variables.values()), lr=self.rate)
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.rate * self.factor(step)
            value, gradient = objective(variables)
            for name, variable in variables.items():
                variable.grad = gradient[name].sign() if self.signed else gradient[name]
            optimizer.step()
            for name, projected in objective.project(variables).items():
                variables[name].copy_(projected)
            report(Step(step + 1, self.steps, value, lambda: objective.decode(variables).images))

    def factor(self, step: int) -> float:
        """The schedule's factor on the rate before iteration `step`, counted from 0."""
        if self.schedule == "constant":
            return 1.0
        return 0.1 ** sum(step >= self.steps // divisor for divisor in IG_MILESTONES)
