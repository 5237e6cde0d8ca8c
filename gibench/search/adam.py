"""Adam, with the gradient or with its sign, hard or soft, and with the noise of GradInversion."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from gibench.engine.replay import Replay
from gibench.errors import ConfigurationError
from gibench.progress import Step, report
from gibench.search.base import Search
from gibench.search.evaluation import Variables
from gibench.search.objective import Objective
from gibench.search.ramp import Ramp
from gibench.search.schedules import Schedule, rate_factor, softness
from gibench.seeding import normal_rows

CHECK = 50  # steps between two looks at which rows have finished
COMPACT = 0.75  # rows are moved together once no more than this share of them is still searched


class Adam(Search):
    """Adam (Kingma and Ba 2015), betas 0.9 and 0.999, on every row at once.

    Rows may finish early, which no published attack does: every 50 steps, those below `target` and those that have not
    improved for `patience` steps are finished: they count no more, and are left out of what is computed.

    Args:
        steps: iterations.
        rate: step size, in the units of the variable.
        signed: replace the gradient by its sign first, as Inverting Gradients does; with Adam on top each step then has
            a length of about `rate` in every coordinate, and the schedule alone decides when it settles. "soft" is
            breaching's tanh(a g) / a with a = 1 - t/steps: it bounds entries above 1 / a and leaves small ones as they
            are, so that under the cosine, whose derivatives are far below 1, it is nearly the unsigned gradient.
        schedule: "step", times 0.1 after floor(steps/2.667), floor(steps/1.6) and floor(steps/1.142) (IG); "cosine",
            (1 + cos(pi t/steps)) / 2 (breaching, GradInversion); "exponential", times `decay` after each step
            (Balunović et al.); "ramped", up and down (GIFD, see `rate_factor`); "constant".
        decay: of the exponential schedule, in (0, 1].
        warm_up: the first so many steps have the rate grow linearly from 0, on top of any schedule.
        noise: after each step, every variable gets noise * (current rate) * N(0, 1), before the box: the Langevin-like
            noise of GradInversion (Yin et al., CVPR 2021), with 0.2. breaching adds 0.01 * rate to the gradient
            instead; in NVIDIA's code it changes nothing. It is drawn for each row and step by name.
        ramp: schedule of the likelihood's factor; None leaves it at 1.
        target: a row whose best value is below has finished; None goes on.
        patience: a row that has not found a better value for so many steps has finished; None goes on.
    """

    state_copies = 8
    fixed_rows = True

    def __init__(
        self,
        *,
        steps: int,
        rate: float = 0.1,
        signed: bool | Literal["soft"] = False,
        schedule: Schedule = "step",
        decay: float = 1.0,
        warm_up: int = 0,
        noise: float = 0.0,
        ramp: Ramp | None = None,
        target: float | None = None,
        patience: int | None = None,
    ) -> None:
        super().__init__()
        if steps < 1 or rate <= 0:
            raise ConfigurationError(f"Adam needs steps >= 1 and rate > 0; got {steps} and {rate}.")
        if patience is not None and patience < 1:
            raise ConfigurationError(f"patience is {patience}; wait at least 1 step.")
        if not 0 < decay <= 1 or (decay != 1 and schedule != "exponential"):
            raise ConfigurationError(f"decay is {decay}; it belongs to the schedule 'exponential' and lies in (0, 1].")
        if schedule not in get_args(Schedule) or signed not in (True, False, "soft"):
            raise ConfigurationError(
                f"schedule is {schedule!r} and signed {signed!r}; choose one of {', '.join(get_args(Schedule))}, and "
                "true, false or 'soft'."
            )
        if not 0 <= warm_up < steps or not 0 <= noise < math.inf:
            raise ConfigurationError(
                f"warm_up is {warm_up} and noise {noise}; a warm-up ends before the {steps} steps do, noise is >= 0."
            )
        if ramp is not None and ramp.steps >= steps:
            raise ConfigurationError(f"the ramp takes {ramp.steps} of {steps} steps; let it end before them.")
        self.steps = self.evaluations = steps
        self.rate = rate
        self.signed = signed
        self.schedule = schedule
        self.decay = decay
        self.warm_up = warm_up
        self.noise = noise
        if noise:
            self.state_copies = 9  # the noise itself
        self.ramp = ramp
        self.target = target
        self.patience = patience

    def forward(self, objective: Objective, start: Variables) -> None:
        """See `Search`."""
        rows = _Rows(self, objective, start)
        try:
            for step in range(self.steps):
                settled = self.ramp is None or step > self.ramp.steps  # values under other factors say nothing
                if step % CHECK == 0 and step and settled and not rows.go_on():
                    report(Step(self.steps, self.steps, rows.value, rows.images))
                    break
                if self.ramp is not None:
                    objective.reweigh(self.ramp(step))
                rows.step(step)
                report(Step(step + 1, self.steps, rows.value, rows.images))
        finally:
            del rows.move  # it holds the rows, and a captured graph with its memory

    def factor(self, step: int) -> float:
        """The schedule's factor on the rate before iteration `step`, counted from 0."""
        return rate_factor(self.schedule, step, self.steps, decay=self.decay, warm_up=self.warm_up)


class _Rows:
    """The iterates of the rows that are still searched, and what is last known of all."""

    def __init__(self, settings: Adam, objective: Objective, start: Variables) -> None:
        self.settings, self.objective = settings, objective
        self.variables = {name: value.clone(memory_format=torch.contiguous_format) for name, value in start.items()}
        self.last = {name: value.clone() for name, value in start.items()}
        first = next(iter(start.values()))
        self.value = first.new_full((len(first),), torch.inf)
        self.searched = torch.ones(len(first), dtype=torch.bool, device=first.device)
        self.rows: Tensor | None = None  # which rows the variables are; None is all
        self.rate, self.softness = first.new_tensor(settings.rate), first.new_ones(())
        self.noise: Variables = {}
        self._begin({})

    def step(self, step: int) -> None:
        """Move all rows once; what changes from step to step is written where captured kernels read it."""
        settings = self.settings
        rate = settings.rate * settings.factor(step)
        self.rate.fill_(rate)
        self.softness.fill_(softness(step, settings.steps))
        for name, noise in self.noise.items():
            drawn = normal_rows(noise.shape[1:], self.seeds, "langevin", name, step)
            noise.copy_(settings.noise * rate * drawn)
        self.move()

    def go_on(self) -> bool:
        """Leave out the rows that have finished; say whether any is left."""
        settings, objective = self.settings, self.objective
        if settings.target is None and settings.patience is None:
            return True
        rows = torch.arange(len(self.value), device=self.value.device) if self.rows is None else self.rows
        going = self.searched[rows]
        if settings.target is not None:
            going &= ~(objective.value[rows] < settings.target)
        if settings.patience is not None:
            going &= objective.evaluations[rows] - objective.improved[rows] < settings.patience
        self._save()
        self.searched[rows] = objective.searched[rows] = going  # in place, since captured kernels read them
        if not going.any():
            return False
        if going.float().mean() <= COMPACT:
            self.rows = rows[going]
            state = {name: dict(self.optimizer.state[value]) for name, value in self.variables.items()}
            self.variables = {name: value[going].clone() for name, value in self.variables.items()}
            self._begin({name: {key: _pick(each, going) for key, each in of.items()} for name, of in state.items()})
        return True

    def images(self) -> Tensor:
        """The images that all rows stand for now."""
        self._save()
        return self.objective.decode(self.last).images

    def _begin(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Build the optimizer of the present rows, and go on from `state`."""
        if self.settings.noise:
            rows = range(len(self.value)) if self.rows is None else self.rows.tolist()
            self.seeds = [self.objective.seeds[row] for row in rows]
            self.noise = {name: torch.zeros_like(value) for name, value in self.variables.items()}
        cuda = self.rate.is_cuda
        self.optimizer = torch.optim.Adam(
            list(self.variables.values()), lr=self.rate if cuda else self.settings.rate, fused=True, capturable=cuda
        )
        for name, of in state.items():
            self.optimizer.state[self.variables[name]] = of
        self.move = Replay(self._move, self.rate.device, capture=self.objective.capture)

    def _move(self) -> None:
        """One iteration, on tensors that stay where they are."""
        objective, variables = self.objective, self.variables
        value, gradient = objective(variables, self.rows)
        for name, variable in variables.items():
            slope = gradient[name].contiguous()  # the fused kernel takes variable and gradient for equally laid out
            variable.grad = self._signed(slope)
        if not self.rate.is_cuda:
            self.optimizer.param_groups[0]["lr"] = float(self.rate)
        self.optimizer.step()
        for name, noise in self.noise.items():
            variables[name].add_(noise)
        for name, projected in objective.project(variables).items():
            variables[name].copy_(projected)
        where = slice(None) if self.rows is None else self.rows
        self.value[where] = torch.where(self.searched[where], value, self.value[where])

    def _signed(self, slope: Tensor) -> Tensor:
        """What Adam gets for the gradient."""
        if self.settings.signed == "soft":
            return torch.tanh(self.softness * slope) / self.softness
        return slope.sign() if self.settings.signed else slope

    def _save(self) -> None:
        """Write the present rows among all; those that have finished stay where they were."""
        where = slice(None) if self.rows is None else self.rows
        for name, variable in self.variables.items():
            searched = self.searched[where].reshape(-1, *[1] * (variable.ndim - 1))
            self.last[name][where] = torch.where(searched, variable, self.last[name][where])


def _pick(tensor: Tensor, rows: Tensor) -> Tensor:
    """The rows of a moment; a step count has none."""
    return tensor[rows].clone() if tensor.ndim else tensor
