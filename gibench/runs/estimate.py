"""What a run will cost, before it is run: a timed evaluation of each attack, times the evaluations to come."""

from copy import deepcopy

import torch

from gibench.attacks import Continuation, GradientMatching, UndoTransformation, WrongUpdate
from gibench.diagnostics import probe_second_derivatives
from gibench.engine.graph import fastest
from gibench.errors import RefusalError
from gibench.runs.plan import Job
from gibench.search.evaluation import unknowns
from gibench.types import Observation

CPU = torch.device("cpu")


def seconds(job: Job, updates: int, *, device: torch.device = CPU, precision: str = "32-true") -> float:
    """Estimate how long `job` takes for `updates` updates: at most, for a search that may stop early.

    One group goes through the client and four times through the objective, of which the fastest but the first counts;
    closed-form attacks, priors alone and what refuses count as nothing. On the way, the engine makes its choice.

    Raises:
        SecondDerivativeError: when the victim cannot be attacked this way; so every job is tried before the first runs.
    """
    attack = job.attack
    searches = 1
    while isinstance(attack, (Continuation, UndoTransformation, WrongUpdate)):  # the last two add no time
        searches *= len(attack.sharpness) + 1 if isinstance(attack, Continuation) else 1
        attack = attack.attack
    if not isinstance(attack, GradientMatching) or attack.likelihood.reads == "nothing" or not updates:
        return 0.0
    client = deepcopy(job.client).double() if precision == "64-true" else job.client
    victim = client.to(device).victim
    probe_second_derivatives(victim, victim.image_shape, victim.num_classes)
    group = next(iter(job.data.predict_dataloader()))
    with torch.no_grad():
        observation = client(group.to(victim.mean.dtype).to(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        try:
            initial = attack.initial if isinstance(attack.initial, GradientMatching) else None
            before = _search_seconds(initial, observation, updates) if initial else 0.0
            return before + searches * _search_seconds(attack, observation, updates)
        except RefusalError:  # it will be recorded
            return 0.0
        finally:
            attack.release()
            if isinstance(attack.initial, GradientMatching):
                attack.initial.release()


def _search_seconds(attack: GradientMatching, observation: Observation, updates: int) -> float:
    prepared = attack.prepare(observation)
    size = min(observation.updates * attack.restarts, attack.rows_at_once(observation, prepared))
    rows = [(restart, update) for update in range(observation.updates) for restart in range(attack.restarts)][:size]
    objective, start = attack.ready(observation, rows, prepared, searches=updates * attack.restarts / size)
    with torch.enable_grad():
        each = fastest(objective, start, warm_up=1) / size
    images, shape = observation.known_batch_size(), observation.image_shape
    further = [stage.search.work(images * stage.pixels.numbers(shape)) for stage in attack.stages[1:]]
    evaluations = attack.search.work(unknowns(start)) + sum(further)
    total: float = each * updates * attack.restarts * evaluations
    return total


def in_words(total: float) -> str:
    """A duration for people: "about 40 s", "about 12 min", "about 3.5 h"."""
    if total < 90:
        return f"about {total:.0f} s"
    if total < 5400:
        return f"about {total / 60:.0f} min"
    return f"about {total / 3600:.1f} h"
