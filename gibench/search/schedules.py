"""Schedules of a search's step size: the factor on the rate, as a closed formula of the step."""

import math
from typing import Literal

Schedule = Literal["step", "cosine", "exponential", "constant", "ramped"]

IG_MILESTONES = (2.667, 1.6, 1.142)  # the divisors in the published code: about 3/8, 5/8 and 7/8 of the steps

RAMP_UP, RAMP_DOWN = 0.05, 0.75


def rate_factor(schedule: Schedule, step: int, steps: int, *, decay: float = 1.0, warm_up: int = 0) -> float:
    """The factor on the rate before iteration `step` of `steps`, counted from 0.

    "step": 0.1 to the number of milestones floor(T/2.667), floor(T/1.6), floor(T/1.142) that are reached (IG).
    "cosine": (1 + cos(pi t/T)) / 2, which would be 0 at t = T (breaching, GradInversion).
    "exponential": decay^t (Balunović et al.). "constant": 1. "ramped": up along a line over the first 5 % of the steps,
    down along a cosine over the last 75 %, as GIFD has it after the projector of StyleGAN2.

    Args:
        schedule: by name.
        step: t.
        steps: T.
        decay: of "exponential".
        warm_up: a further factor min(1, t / warm_up); the first step then goes nowhere. breaching begins the schedule
            after the warm-up and cuts off its end; here it spans all steps.
    """
    factor = min(1.0, step / warm_up) if warm_up else 1.0
    if schedule == "constant":
        return factor
    if schedule == "exponential":
        return factor * decay**step
    if schedule == "ramped":
        at = step / steps
        down = (1 - math.cos(math.pi * min(1.0, (1 - at) / RAMP_DOWN))) / 2
        return factor * down * min(1.0, at / RAMP_UP)
    if schedule == "cosine":
        return factor * (1 + math.cos(math.pi * step / steps)) / 2
    return factor * 0.1 ** sum(step >= steps // divisor for divisor in IG_MILESTONES)


def softness(step: int, steps: int) -> float:
    """a_t = 1 - t/T of the soft sign tanh(a g) / a, from 1 to 1/T; towards 0 it is the gradient itself."""
    return 1 - step / steps
