"""Trace an evaluation, both of its differentiations included, to one flat graph, and compile it."""

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from gibench.engine.memory import is_out_of_memory
from gibench.errors import BackendError
from gibench.progress import clock

log = logging.getLogger("gibench")

WORTH_COMPILING = 60.0  # seconds of evaluations that are still to come
GAIN = 0.2  # of the time that a compiled evaluation saves for many rows; measured between nothing and a half
SECONDS_PER_NODE = 0.05  # what compiling takes for each node of the graph, measured between 0.01 and 0.05


def fastest(
    function: Callable[..., Any],
    *arguments: Any,  # noqa: ANN401 - trees
    warm_up: int = 0,
    calls: int = 3,
) -> float:
    """Seconds of the fastest of some calls, after others that do not count."""
    device = next(each.device for each in pytree.tree_leaves(arguments) if isinstance(each, Tensor))
    times = []
    for _ in range(warm_up + calls):
        begin = clock(device)
        function(*arguments)
        times.append(clock(device) - begin)
    return min(times[warm_up:])


class Traced:
    """A function of trees of tensors as one flat graph, for tensors of the shapes that it was traced with.

    Args:
        function: trees of tensors -> a tree of tensors; it must not branch on their values.
        examples: arguments.

    Raises:
        BackendError: when the function branches on values.
    """

    def __init__(self, function: Callable[..., Any], *examples: Any) -> None:  # noqa: ANN401 - trees
        flat, self.structure = pytree.tree_flatten(examples)

        def flattened(*tensors: Tensor) -> list[Tensor]:
            outputs, self.result = pytree.tree_flatten(function(*pytree.tree_unflatten(tensors, self.structure)))
            return outputs

        self.shapes = [getattr(each, "shape", None) for each in flat]
        try:
            self.graph: GraphModule = make_fx(flattened, tracing_mode="real")(*flat)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise _failed("tracing", error) from error
        self.run: Callable[..., list[Tensor]] = self.graph

    @property
    def nodes(self) -> int:
        """Operations in the graph."""
        return sum(node.op == "call_function" for node in self.graph.graph.nodes)

    def compile(self, *examples: Any) -> "Traced":  # noqa: ANN401 - trees
        """Compile the graph, and run it once so that a failure shows here.

        Raises:
            BackendError: when the compiler fails, for example because there is no C++ compiler.
        """
        self.run = torch.compile(self.graph, fullgraph=True, dynamic=False)
        try:
            self(*examples)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise _failed("compiling", error) from error
        return self

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401 - trees
        """Call the graph as the function was called; with other shapes it would not be the function."""
        flat, structure = pytree.tree_flatten(arguments)
        if structure != self.structure or [getattr(each, "shape", None) for each in flat] != self.shapes:
            raise BackendError("a traced evaluation got other arguments than it was traced with.")
        return pytree.tree_unflatten(self.run(*flat), self.result)


def _failed(what: str, error: Exception) -> BackendError:
    reason = str(error).strip().split("\n")[0]
    return BackendError(f"{what} failed ({reason}); set the engine's compile to 'off'.")


def compile_where_it_repays(
    mode: Literal["auto", "off", "on", "again"],
    function: Callable[..., Any],
    examples: tuple[Any, ...],
    *,
    seconds: float,
) -> tuple[Traced | None, str]:
    """Trace and compile, where that is wanted; return what is to be called instead of the function, and why.

    Args:
        mode: "auto" compiles where the time to come repays it, and keeps what is faster; "again" does what was decided
            before, if this machine can.
        function: a pure function of trees of tensors.
        examples: its arguments.
        seconds: that its calls would still take; 0 where nobody knows.

    Raises:
        BackendError: when the compiler fails and the mode is "on".
    """
    if mode == "off":
        return None, "off"
    if mode == "auto" and seconds < WORTH_COMPILING:
        return None, "too few evaluations to repay compiling"
    try:
        traced = Traced(function, *examples)
        if mode == "auto" and GAIN * seconds < SECONDS_PER_NODE * traced.nodes:
            return None, f"too few evaluations to repay compiling {traced.nodes} operations"
        traced.compile(*examples)
    except BackendError as error:
        if mode == "on":
            raise
        log.warning("%s", error)
        return None, str(error)
    if mode == "auto":
        gain = fastest(function, *examples) / fastest(traced, *examples)
        if gain < 1:
            return None, f"{traced.nodes} operations in one graph were only {gain:.2f} times as fast"
    return traced, f"{traced.nodes} operations in one graph"
