"""The engine: which back end computes an attack's objective, whether it is compiled, and how many rows go together."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, final

import torch
from torch.utils import _pytree as pytree

from gibench.engine.backends import BACKENDS, Backend, GenericBackend, GramBackend, RulesBackend, build
from gibench.engine.cost import Cost, cost, layer_costs
from gibench.engine.gradient import LocalGradient
from gibench.engine.graph import Traced, compile_where_it_repays
from gibench.engine.memory import free_bytes
from gibench.engine.rules import UnsupportedLayerError
from gibench.engine.verify import verify
from gibench.errors import BackendError, ConfigurationError
from gibench.likelihoods import Likelihood
from gibench.types import Observation

log = logging.getLogger("gibench")

GIB = 2**30
WORTH_MEASURING = 30.0  # seconds that the cost model predicts for the whole search
HOPELESS = 4.0  # times as slow as the best by the cost model: not measured

MANY = 10_000  # evaluations: below, a forced back end is not timed

NOT_TRIED = "not tried yet"

BackendName = Literal["generic", "rules", "gram"]


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


class Prepared(NamedTuple):
    """A choice, the back end it names, and the cost model's view of it where there is one."""

    choice: Choice
    backend: Backend
    cost: Cost | None


Trial = Callable[[Backend], float]
"""Evaluates a few rows twice with a back end and returns the seconds of one row's evaluation, the second time."""


@final
class Engine:
    """How an attack computes; it changes the speed, and the last digits, of what is computed.

    Args:
        backend: "generic" (`vmap(grad)`, any victim and client), "rules" (one rule for each kind of layer), "gram" (the
            rules without holding gradients, for distances made of inner products), or "auto": among those that serve,
            the fastest of two evaluations, once the whole search is worth measuring; else generic.
        compile: "on" traces the evaluation, both differentiations included, to one flat graph and compiles it; "auto"
            does so where the evaluations to come repay the time; "off". On CUDA, "auto" and "on" also replay the steps
            of searches that allow it from a captured graph.
        memory_gib: what the rows that are searched together may take; None finds it, as four fifths of what is free.
    """

    def __init__(
        self,
        *,
        backend: Literal["auto", "generic", "rules", "gram"] = "auto",
        compile: Literal["auto", "off", "on"] = "auto",  # noqa: A002 - the word of the field
        memory_gib: float | None = 4.0,
    ) -> None:
        if memory_gib is not None and memory_gib <= 0:
            raise ConfigurationError(f"memory_gib is {memory_gib}; it must be positive, or null to find it.")
        if backend != "auto" and backend not in BACKENDS:
            raise ConfigurationError(f"backend is {backend!r}; choose auto, {', '.join(BACKENDS)}.")
        if compile not in ("auto", "off", "on"):
            raise ConfigurationError(f"compile is {compile!r}; choose auto, off or on.")
        self.backend = backend
        self.compile = compile
        self.memory_gib = memory_gib
        self.choice: Choice | None = None
        """The last choice."""
        self.recalled: Choice | None = None
        self._prepared: dict[tuple[Any, ...], Prepared] = {}
        self._compiled: dict[tuple[Any, ...], Traced | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies of an attack prepare for themselves."""
        return {**self.__dict__, "_prepared": {}, "_compiled": {}}

    def recall(self, choice: Choice) -> None:
        """Keep to a choice that was made before, as a resumed run does, so that its rows are computed in one way."""
        self.recalled = self.choice = choice

    def prepare(
        self, observation: Observation, likelihood: Likelihood, *, restarts: int, evaluations: int, trial: Trial
    ) -> Prepared:
        """Choose for this kind of observation; the same kind is not measured twice.

        Args:
            observation: of the updates to attack.
            likelihood: the distance.
            restarts: rows for each update.
            evaluations: of all rows together, at most, for this observation.
            trial: times a back end.

        Raises:
            BackendError: when a back end is forced that cannot serve.
        """
        key = _kind(observation, likelihood, restarts)
        if key not in self._prepared:
            self._prepared[key] = self._choose(observation, likelihood, restarts, evaluations, trial)
        found = self._prepared[key]
        if isinstance(found.backend, GenericBackend):
            found.backend.simulate = observation.simulate
        self.choice = found.choice
        return found

    def compiled(
        self,
        prepared: Prepared,
        evaluate: Callable[..., Any],
        *examples: Any,  # noqa: ANN401 - trees of tensors
        evaluations: int,
        rows: int,
    ) -> Callable[..., Any] | None:
        """Trace and compile an evaluation where that is wanted and repays; None leaves it as it is.

        Args:
            prepared: the choice; what was decided is written into it.
            evaluate: a pure function of trees of tensors.
            examples: its arguments.
            evaluations: of `rows` rows at once, that are to come.
            rows: leading size of the arguments.

        Raises:
            BackendError: when the compiler fails and compile is "on".
        """
        choice = prepared.choice
        shapes = tuple(tensor.shape for tensor in pytree.tree_leaves(examples) if isinstance(tensor, torch.Tensor))
        key = id(prepared), shapes
        if key not in self._compiled:
            mode = self.compile
            if self.recalled is choice and choice.compile_reason != NOT_TRIED:
                mode = "on" if choice.compiled else "off"
            rate = choice.rates.get(choice.backend)
            ahead = evaluations * rows / rate if rate else 0.0
            traced, choice.compile_reason = compile_where_it_repays(mode, evaluate, examples, seconds=ahead)
            choice.compiled = traced is not None
            self._compiled[key] = traced
        return self._compiled[key]

    def row_bytes(self, prepared: Prepared, observation: Observation) -> float:
        """Estimated bytes of one row's evaluation."""
        if prepared.choice.backend == "generic" or prepared.cost is None:
            return observation.bytes_per_update
        return prepared.cost.peak

    def halve(self, choice: Choice, rows: int) -> None:
        """Note that `rows` rows together ran out of memory; from now on half of them go together."""
        choice.row_limit = rows // 2
        log.warning("%d rows together ran out of memory; going on with %d.", rows, choice.row_limit)

    def budget(self, device: torch.device) -> float:
        """Bytes for the rows that are searched together."""
        return 0.8 * free_bytes(device) if self.memory_gib is None else self.memory_gib * GIB

    def _choose(
        self, observation: Observation, likelihood: Likelihood, restarts: int, evaluations: int, trial: Trial
    ) -> Prepared:
        simulate = observation.simulate
        wanted = self.recalled.backend if self.recalled else self.backend
        if likelihood.reads == "nothing":
            return Prepared(Choice("generic", "no update is simulated"), GenericBackend(simulate), None)
        if wanted != "auto":
            backend = build(wanted, simulate, likelihood)
            if wanted != "generic" and isinstance(simulate, LocalGradient):
                verify(wanted, simulate, likelihood, observation.known_batch_size())
            costs = _costs({wanted: backend}, observation, restarts)
            return Prepared(self.recalled or _forced(wanted, backend, evaluations, trial), backend, costs.get(wanted))
        backends, refused = _able(observation, likelihood)
        costs = _costs(backends, observation, restarts)
        choice = _fastest(backends, refused, costs, evaluations, observation, likelihood, trial)
        return Prepared(choice, backends[choice.backend], costs.get(choice.backend))


def _forced(name: BackendName, backend: Backend, evaluations: int, trial: Trial) -> Choice:
    """The choice of one back end, with its rate where there is much to do: compiling is decided by it."""
    return Choice(name, "forced", rates={name: 1 / trial(backend)} if evaluations >= MANY else {})


def _able(observation: Observation, likelihood: Likelihood) -> tuple[dict[BackendName, Backend], dict[str, str]]:
    """Build the back ends that may be chosen; say what stands against the others."""
    backends: dict[BackendName, Backend] = {"generic": GenericBackend(observation.simulate)}
    refused: dict[str, str] = {}
    faster: tuple[BackendName, ...] = ("rules", "gram")
    for name in faster:
        try:
            backends[name] = build(name, observation.simulate, likelihood)
        except BackendError as error:
            refused[name] = str(error)
            if isinstance(error, UnsupportedLayerError):
                log.warning("back end %r cannot serve this victim, the generic one does: %s", name, error)
    double = next(iter(observation.update.values())).dtype == torch.float64
    if likelihood.cancels and not double and "gram" in backends:
        del backends["gram"]
        refused["gram"] = f"{type(likelihood).__name__} from inner products needs float64"
    return backends, refused


def _fastest(
    backends: dict[BackendName, Backend],
    refused: dict[str, str],
    costs: dict[str, Cost],
    evaluations: int,
    observation: Observation,
    likelihood: Likelihood,
    trial: Trial,
) -> Choice:
    """Verify, leave out what is hopeless by the cost model, and time two evaluations of each that is left."""
    if len(backends) == 1:
        return Choice("generic", "the only one that serves", refused=refused)
    device = next(iter(observation.update.values())).device
    predicted = {name: costs[name].seconds(device) for name in backends}
    total = evaluations * predicted["generic"]
    if total < WORTH_MEASURING:
        return Choice("generic", f"about {total:.1f} s of work, too little to measure", refused=refused)
    for name in backends:
        try:
            if name != "generic" and isinstance(observation.simulate, LocalGradient):
                verify(name, observation.simulate, likelihood, observation.known_batch_size())
        except BackendError as error:
            refused[name] = str(error)
            del predicted[name]
            log.warning("%s", error)
    least = min(predicted.values())
    rates: dict[str, float] = {}
    for name, seconds in predicted.items():
        if seconds > HOPELESS * least:
            refused[name] = f"{seconds / least:.0f} times as slow by the cost model"
        else:
            rates[name] = 1 / trial(backends[name])
    best = max(predicted, key=lambda name: rates.get(name, 0.0))
    return Choice(best, "the fastest of two evaluations", rates=rates, refused=refused)


def _costs(backends: Mapping[BackendName, Backend], observation: Observation, restarts: int) -> dict[str, Cost]:
    """The cost model of each back end; none where no tape knows the layers."""
    tape = next(
        (backend.tape for backend in backends.values() if isinstance(backend, RulesBackend | GramBackend)), None
    )
    if tape is None:
        return {}
    layers = layer_costs(tape, observation.known_batch_size())
    element = next(iter(observation.update.values())).element_size()
    return {name: cost(name, layers, restarts=restarts, element=element) for name in backends}


def _kind(observation: Observation, likelihood: Likelihood, restarts: int) -> tuple[Any, ...]:
    """What a choice, and the tape behind it, hold for: the victim as it stands, the sizes, the precision."""
    victim = observation.victim
    tensors = [*victim.parameters(), *victim.buffers()]
    first = next(iter(observation.update.values()))
    device = first.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    simulate = observation.simulate
    fixed = (id(simulate.victim), simulate.scale) if isinstance(simulate, LocalGradient) else None
    where = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
    return fixed, where, first.dtype, first.device, autocast, observation.batch_size, type(likelihood), restarts
