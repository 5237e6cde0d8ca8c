"""Trace an evaluation, both of its differentiations included, to one flat graph, and compile it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from gibench.errors import BackendError

SECONDS_PER_NODE = 0.05
"""About what compiling takes for each node of the graph; measured between 0.02 and 0.05."""


class Traced:
    """A function of trees of tensors as one flat graph, for tensors of the shapes that it was traced with.

    Args:
        function: trees of tensors -> a tree of tensors; it must not branch on their values.
        examples: arguments.
    """

    def __init__(self, function: Callable[..., Any], *examples: Any) -> None:  # noqa: ANN401 - trees
        flat, self.structure = pytree.tree_flatten(examples)

        def flattened(*tensors: Tensor) -> list[Tensor]:
            outputs, self.result = pytree.tree_flatten(function(*pytree.tree_unflatten(tensors, self.structure)))
            return outputs

        self.graph: GraphModule = make_fx(flattened, tracing_mode="real")(*flat)
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
            reason = str(error).strip().split("\n")[0]
            raise BackendError(f"compiling failed ({reason}); set the engine's compile to 'off'.") from error
        return self

    def __call__(self, *arguments: Any) -> Any:  # noqa: ANN401 - trees
        """Call the graph as the function was called."""
        flat, structure = pytree.tree_flatten(arguments)
        if structure != self.structure:
            raise BackendError("a traced evaluation got other arguments than it was traced with.")
        return pytree.tree_unflatten(self.run(*flat), self.result)
