"""What a rule is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from gibench.errors import BackendError

Layer = TypeVar("Layer", bound=nn.Module)


class UnsupportedLayerError(BackendError):
    """A layer has no rule; the generic back end serves it."""


@dataclass
class Capture:
    """What one pass leaves of one layer, for all N = U * B samples.

    inputs: what the gradient is made of besides delta: the layer's input, or its normalized input, (N, ...).
    output: (N, ...), of which delta is the derivative.
    """

    inputs: Tensor
    output: Tensor


Pair = tuple[Tensor, Tensor]
"""<G, g> and <G, G> of one parameter, each (U,)."""


class Rule(ABC, Generic[Layer]):
    """The forward pass of one layer with frozen weights, and the gradients of U updates from one batch of N = U * B.

    Args:
        layer: the layer; its weights are read, never changed.

    Raises:
        UnsupportedLayerError: for settings of the layer that the rule does not know.
    """

    def __init__(self, layer: Layer) -> None:
        self.check(layer)
        self.layer = layer

    def check(self, layer: Layer) -> None:
        """Raise UnsupportedLayerError where the layer has settings that the rule does not know."""

    @abstractmethod
    def forward(self, inputs: Tensor, updates: int) -> Capture:
        """Run the layer on (N, ...), in which the samples of each of the `updates` updates lie together."""

    @abstractmethod
    def gradients(self, inputs: Tensor, delta: Tensor, updates: int) -> dict[str, Tensor]:
        """Return parameter name -> (U, *shape), from what was captured and the derivative delta (N, ...)."""

    def products(self, inputs: Tensor, delta: Tensor, updates: int, observed: dict[str, Tensor]) -> dict[str, Pair]:
        """Return parameter name -> (<G, g>, <G, G>), each (U,); by default from the gradients themselves.

        Args:
            inputs: as in `gradients`.
            delta: as in `gradients`.
            updates: as in `gradients`.
            observed: parameter name -> (U', *shape); each of them is compared with U / U' updates in a row (restarts).
        """
        gradients = self.gradients(inputs, delta, updates)
        return {name: pair(gradients[name], observed[name]) for name in observed}


def pair(gradient: Tensor, observed: Tensor) -> Pair:
    """<G, g> and <G, G> for G (U, *shape) and g (U', *shape), in the type of g."""
    gradient = gradient.to(observed.dtype)
    restarts = gradient.flatten(1).unflatten(0, (len(observed), -1))
    cross = (restarts * observed.flatten(1)[:, None]).sum(2).flatten()
    return cross, gradient.square().flatten(1).sum(1)
