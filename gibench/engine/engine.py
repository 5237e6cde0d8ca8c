"""The engine: how an attack's objective is computed, whether it is compiled, and how many rows go together."""

import logging
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch.utils import _pytree as pytree

from gibench.engine.backends import BACKENDS, GenericBackend
from gibench.engine.choice import NOT_TRIED, Choice, Prepared, Problem, Trial, choose
from gibench.engine.graph import Traced, compile_where_it_repays
from gibench.engine.memory import GIB, free_bytes
from gibench.errors import ConfigurationError
from gibench.likelihoods import Likelihood
from gibench.types import Observation

log = logging.getLogger("gibench")


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
        self._found: dict[torch.device, float] = {}
        self._settled = False  # whether the recalled choice says whether to compile
        self._prepared: dict[tuple[Any, ...], Prepared] = {}
        self._compiled: dict[tuple[Any, ...], Traced | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Copies of an attack prepare for themselves."""
        return {**self.__dict__, "_prepared": {}, "_compiled": {}, "_found": {}}

    def recall(self, choice: Choice) -> None:
        """Keep to a choice that was made before, as a resumed run does, so that its rows are computed in one way."""
        self.recalled = self.choice = choice
        self._settled = choice.compile_reason != NOT_TRIED
        self._prepared = {kind: old for kind, old in self._prepared.items() if old.choice.backend == choice.backend}

    def prepare(
        self,
        observation: Observation,
        likelihood: Likelihood,
        *,
        restarts: int,
        evaluations: int,
        state_bytes: float,
        trial: Trial,
    ) -> Prepared:
        """Choose for this kind of observation; the same kind is not measured twice.

        Args:
            observation: of the updates to attack.
            likelihood: the distance.
            restarts: rows for each update.
            evaluations: of all rows together, at most, for this observation.
            state_bytes: what the search holds for a row.
            trial: times a back end.

        Raises:
            BackendError: when a back end is forced that cannot serve.
            ConfigurationError: when not even one row fits the budget.
        """
        device = next(iter(observation.update.values())).device
        problem = Problem(observation, likelihood, restarts, evaluations, trial, state_bytes, self.budget(device))
        kind = problem.kind()
        if kind not in self._prepared:
            self._prepared[kind] = choose(problem, self.recalled.backend if self.recalled else self.backend)
        found = self._prepared[kind]
        if self.recalled and likelihood.reads != "nothing":
            found = self._prepared[kind] = found._replace(choice=self.recalled)
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
        stage: int = 0,
    ) -> Callable[..., Any] | None:
        """Trace and compile an evaluation where that is wanted and repays; None leaves it as it is.

        Args:
            prepared: the choice; what was decided is written into it.
            evaluate: a pure function of trees of tensors.
            examples: its arguments.
            evaluations: of `rows` rows at once, that are to come.
            rows: leading size of the arguments.
            stage: which of several searches evaluates; equal shapes are another function in another stage.

        Raises:
            BackendError: when the compiler fails and compile is "on".
        """
        choice = prepared.choice
        shapes = tuple(tensor.shape for tensor in pytree.tree_leaves(examples) if isinstance(tensor, torch.Tensor))
        key = prepared.kind, stage, shapes
        if key not in self._compiled:
            settled = self.recalled is choice and self._settled
            mode = ("again" if choice.compiled else "off") if settled and self.compile == "auto" else self.compile
            rate = choice.rates.get(choice.backend)
            ahead = evaluations * rows / rate if rate else 0.0
            traced, reason = compile_where_it_repays(mode, evaluate, examples, seconds=ahead)
            if not settled and not choice.compiled:  # a smaller last chunk may not be worth it any more
                choice.compiled, choice.compile_reason = traced is not None, reason
            self._compiled[key] = traced
        return self._compiled[key]

    def leave_uncompiled(self, prepared: Prepared, reason: str) -> None:
        """Note why nothing is compiled, and say so where the user wants it to be."""
        prepared.choice.compile_reason = reason
        if self.compile == "on":
            log.warning("nothing is compiled: %s.", reason)

    def halve(self, choice: Choice, rows: int) -> None:
        """Note that `rows` rows together ran out of memory; from now on half of them go together."""
        choice.row_limit = rows // 2
        log.warning("%d rows together ran out of memory; going on with %d.", rows, choice.row_limit)

    def budget(self, device: torch.device) -> float:
        """Bytes for the rows that are searched together; found once, before the search itself takes memory."""
        if self.memory_gib is not None:
            return self.memory_gib * GIB
        if device not in self._found:
            self._found[device] = 0.8 * free_bytes(device)
        return self._found[device]
