"""Which back end computes an attack's objective: what serves, what fits, and what is fastest."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch

from gibench.engine.backends import Backend, GenericBackend, GramBackend, RulesBackend, build
from gibench.engine.cost import Cost, cost, layer_costs
from gibench.engine.gradient import LocalGradient
from gibench.engine.memory import GIB
from gibench.engine.rules import UnsupportedLayerError
from gibench.engine.verify import verify
from gibench.errors import BackendError, ConfigurationError
from gibench.likelihoods import Likelihood
from gibench.types import Observation

log = logging.getLogger("gibench")

WORTH_MEASURING = 4.0  # seconds that the cost model predicts for the whole search; narrow nets take several times more
HOPELESS = 4.0  # times as slow as the best by the cost model: not measured
MANY = 10_000  # evaluations: below, a forced back end is not timed
NOT_TRIED = "not tried yet"

BackendName = Literal["generic", "rules", "gram"]
FASTER: tuple[BackendName, ...] = ("rules", "gram")


@dataclass
class Choice:
    """What the engine decided for one kind of problem, in plain types, as the manifest keeps it.

    backend: by name. reason: in words.
    rates: rows x evaluations per second, where they were measured. refused: back end -> what stands against it.
    compiled: whether the evaluation was traced and compiled; compile_reason says why, or why not.
    row_limit: at most so many rows together, since more ran out of memory.
    """

    backend: BackendName
    reason: str
    rates: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    compiled: bool = False
    compile_reason: str = NOT_TRIED
    row_limit: int | None = None

    def __str__(self) -> str:
        return f"{self.backend}, compiled" if self.compiled else self.backend


Trial = Callable[[Backend], float]
"""Evaluates a few rows twice with a back end and returns the seconds of one row's evaluation, the second time."""


class Problem(NamedTuple):
    """What is to be computed.

    observation: of the updates. likelihood: the distance. restarts: rows for each update.
    evaluations: of all rows together, at most. trial: times a back end.
    state: bytes that the search holds for a row. budget: bytes for the rows that go together.
    """

    observation: Observation
    likelihood: Likelihood
    restarts: int
    evaluations: int
    trial: Trial
    state: float
    budget: float

    @property
    def device(self) -> torch.device:
        """Where the observed updates are."""
        return next(iter(self.observation.update.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the observed updates."""
        return next(iter(self.observation.update.values())).dtype

    def kind(self) -> tuple[Any, ...]:
        """What a choice, and the tape behind it, hold for: the victim as it stands, the sizes, the precision."""
        victim, simulate = self.observation.victim, self.observation.simulate
        device = self.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        fixed = (id(simulate.victim), simulate.scale) if isinstance(simulate, LocalGradient) else None
        where = tuple((tensor.data_ptr(), tensor._version) for tensor in [*victim.parameters(), *victim.buffers()])
        size = self.observation.batch_size
        return fixed, where, self.dtype, self.device, autocast, size, type(self.likelihood), self.restarts


class Prepared(NamedTuple):
    """A choice and the back end that it names.

    row_bytes: estimated, of one row, the search's state included. kind: of the problem that all this holds for.
    """

    choice: Choice
    backend: Backend
    row_bytes: float
    kind: tuple[Any, ...]


def choose(problem: Problem, wanted: Literal["auto", "generic", "rules", "gram"]) -> Prepared:
    """Choose among the back ends that serve and fit the budget, or take the one that is wanted.

    Raises:
        BackendError: when the wanted one cannot serve.
        ConfigurationError: when not even one row fits the budget.
    """
    observation, likelihood = problem.observation, problem.likelihood
    if likelihood.reads == "nothing":
        idle = GenericBackend(observation.simulate)
        return Prepared(Choice("generic", "no update is simulated"), idle, problem.state, problem.kind())
    if wanted == "auto":
        backends, refused = _able(problem)
    else:
        backends, refused = {wanted: _build(problem, wanted)}, {}
    costs = _costs(backends, problem)
    each = {name: observation.bytes_per_update if name == "generic" else costs[name].peak for name in backends}
    needed = {name: problem.state + size for name, size in each.items()}
    if min(needed.values()) > problem.budget:
        raise ConfigurationError(
            f"one update needs about {min(needed.values()) / GIB:.2g} GiB, memory_gib allows "
            f"{problem.budget / GIB:.2g}; raise it."
        )
    for name in [name for name in backends if needed[name] > problem.budget]:
        del backends[name]
        refused[name] = f"one row needs about {needed[name] / GIB:.2g} GiB"
    if wanted != "auto":
        choice = _forced(problem, wanted, backends[wanted])
    else:
        choice = _fastest(problem, backends, refused, costs)
    return Prepared(choice, backends[choice.backend], needed[choice.backend], problem.kind())


def _build(problem: Problem, name: BackendName) -> Backend:
    likelihood = problem.likelihood
    if name == "gram" and likelihood.cancels and problem.dtype != torch.float64:
        raise BackendError(f"{type(likelihood).__name__} from inner products needs float64; choose 'rules' or 64-true.")
    return build(name, problem.observation.simulate, likelihood)


def _forced(problem: Problem, name: BackendName, backend: Backend) -> Choice:
    """The choice of one back end, with its rate where there is much to do: compiling is decided by it."""
    _verify(problem, name)
    rates: dict[str, float] = {name: 1 / problem.trial(backend)} if problem.evaluations >= MANY else {}
    return Choice(name, "forced", rates=rates)


def _able(problem: Problem) -> tuple[dict[BackendName, Backend], dict[str, str]]:
    """Build the back ends that may be chosen; say what stands against the others."""
    backends: dict[BackendName, Backend] = {"generic": GenericBackend(problem.observation.simulate)}
    refused: dict[str, str] = {}
    for name in FASTER:
        try:
            backends[name] = _build(problem, name)
        except BackendError as error:
            refused[name] = str(error)
            if isinstance(error, UnsupportedLayerError):
                log.warning("back end %r cannot serve this victim, the generic one does: %s", name, error)
    return backends, refused


def _fastest(
    problem: Problem, backends: dict[BackendName, Backend], refused: dict[str, str], costs: dict[BackendName, Cost]
) -> Choice:
    """Verify, leave out what is hopeless by the cost model, and time two evaluations of each that is left."""
    if set(backends) == {"generic"}:
        return Choice("generic", "the only one that serves", refused=refused)
    predicted = {name: costs[name].seconds(problem.device) for name in backends}
    total = problem.evaluations * max(predicted.values())
    if "generic" in backends and total < WORTH_MEASURING:
        return Choice("generic", f"about {total:.1f} s of work, too little to measure", refused=refused)
    for name in backends:
        try:
            _verify(problem, name)
        except BackendError as error:
            refused[name] = str(error)
            del predicted[name]
            log.warning("%s", error)
    if not predicted:
        why = "; ".join(refused.values())
        raise BackendError(f"no back end serves this victim within the budget ({why}); raise memory_gib.")
    least = min(predicted.values())
    rates: dict[str, float] = {}
    for name, seconds in predicted.items():
        if seconds > HOPELESS * least:
            refused[name] = f"{seconds / least:.0f} times as slow by the cost model"
        else:
            rates[name] = 1 / problem.trial(backends[name])
    best = max(predicted, key=lambda name: rates.get(name, 0.0))
    return Choice(best, "the fastest of two evaluations", rates=rates, refused=refused)


def _verify(problem: Problem, name: BackendName) -> None:
    simulate = problem.observation.simulate
    if name != "generic" and isinstance(simulate, LocalGradient):
        verify(name, simulate, problem.likelihood, problem.observation.known_batch_size())


def _costs(backends: Mapping[BackendName, Backend], problem: Problem) -> dict[BackendName, Cost]:
    """The cost model of each back end; none where no tape knows the layers."""
    tapes = [backend.tape for backend in backends.values() if isinstance(backend, RulesBackend | GramBackend)]
    if not tapes:
        return {}
    layers = layer_costs(tapes[0], problem.observation.known_batch_size())
    element, unfolds = problem.dtype.itemsize, problem.device.type != "cpu"
    return {name: cost(name, layers, restarts=problem.restarts, element=element, unfolds=unfolds) for name in backends}
