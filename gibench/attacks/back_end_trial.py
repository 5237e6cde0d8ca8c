"""How fast a back end is on an attack's own rows: what the engine chooses by."""

import math
from typing import TYPE_CHECKING

import torch

from gibench.engine import Backend
from gibench.engine.graph import fastest
from gibench.engine.memory import is_out_of_memory
from gibench.types import Observation

if TYPE_CHECKING:
    from gibench.attacks.gradient_matching import GradientMatching

FEW_ROWS, MANY_ROWS = 16, 64  # many where few take little
LITTLE = 0.2  # seconds


def seconds_per_row(attack: "GradientMatching", observation: Observation, backend: Backend) -> float:
    """Seconds of one row's evaluation, after a first one: of a few rows, and of many where that costs little."""
    each = _timed(attack, observation, backend, FEW_ROWS)
    return _timed(attack, observation, backend, MANY_ROWS) if each * FEW_ROWS < LITTLE else each


def _timed(attack: "GradientMatching", observation: Observation, backend: Backend, count: int) -> float:
    posterior, restarts = attack.posterior(observation), attack.restarts
    budget = attack.engine.budget(next(iter(observation.update.values())).device)
    count = min(max(count, restarts), max(1, int(budget // posterior.observation.bytes_per_update)))
    count = count - count % restarts or count  # whole updates, since restarts may share what is observed
    rows = posterior.rows[:count]
    try:
        objective, start = attack.problem(observation, rows, backend)
        with torch.enable_grad():
            return fastest(objective, start, warm_up=1, calls=2) / len(rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return _timed(attack, observation, backend, count // 2) if count > restarts else math.inf
