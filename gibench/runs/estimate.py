"""What a run will cost, before it is run: a timed evaluation of each attack, times the evaluations to come."""

import time

import torch

from gibench.attacks import GradientMatching
from gibench.diagnostics import probe_second_derivatives
from gibench.runs.plan import Job
from gibench.search import Objective
from gibench.search.objective import Variables


def seconds(job: Job, updates: int) -> float:
    """Estimate how long `job` takes for `updates` updates: at most, for a search that may stop early.

    One group goes through the client and four times through the objective, of which the fastest but the first counts;
    closed-form attacks and priors alone count as nothing.

    Raises:
        SecondDerivativeError: when the victim cannot be attacked this way; so every job is tried before the first runs.
    """
    attack = job.attack
    if not isinstance(attack, GradientMatching) or not attack.likelihood.uses_update or not updates:
        return 0.0
    victim = job.client.victim
    probe_second_derivatives(victim, victim.image_shape, victim.num_classes)
    group = next(iter(job.data.predict_dataloader()))
    with torch.no_grad():
        observation = job.client(group.to(victim.mean.dtype))
    rows = min(observation.updates, attack.rows_at_once(observation))
    objective, start = attack.problem(observation, [(0, update) for update in range(rows)])
    objective(start)
    each = min(_timed(objective, start) for _ in range(3)) / rows
    total: float = each * updates * attack.restarts * attack.search.evaluations
    return total


def _timed(objective: Objective, start: Variables) -> float:
    begin = time.perf_counter()
    objective(start)
    return time.perf_counter() - begin


def in_words(total: float) -> str:
    """A duration for people: "about 40 s", "about 12 min", "about 3.5 h"."""
    if total < 90:
        return f"about {total:.0f} s"
    if total < 5400:
        return f"about {total / 60:.0f} min"
    return f"about {total / 3600:.1f} h"
