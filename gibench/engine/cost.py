"""A model of what an evaluation costs in each back end: enough to leave out the hopeless ones and to cut chunks."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gibench.engine.convolution import NARROW
from gibench.engine.rules.linear import gram_is_cheaper
from gibench.engine.tape import Tape

# Floating-point operations and bytes a second, of two CPU cores and of a data-center GPU; only their ratio decides.
_SPEED = {"cpu": (200e9, 20e9), "cuda": (30e12, 2e12)}

# Passes over each parameter of a gradient that is held: made, multiplied twice, and the same backwards.
_EXPLICIT_PASSES = 12
_GRAM_PASSES = 3  # over the observed update alone


@dataclass(frozen=True)
class LayerCost:
    """One layer that multiplies: T = B * positions rows of I inputs and O outputs; `parameters` of its weight."""

    rows: int
    inputs: int
    outputs: int
    parameters: int
    numbers: int
    """Numbers that the layer takes in and puts out for one update."""

    @property
    def flops(self) -> int:
        """Of one forward pass."""
        return 2 * self.rows * self.parameters

    @property
    def gram(self) -> bool:
        """Whether the Gram form is cheaper here."""
        return gram_is_cheaper(self.rows, self.inputs, self.outputs)


@dataclass(frozen=True)
class Cost:
    """What one evaluation of one row costs: floating-point operations, bytes moved, and bytes held at the peak."""

    flops: float
    traffic: float
    peak: float

    def seconds(self, device: torch.device) -> float:
        """The time that the model predicts."""
        speed, bandwidth = _SPEED.get(device.type, _SPEED["cpu"])
        return self.flops / speed + self.traffic / bandwidth


def layer_costs(tape: Tape, batch_size: int) -> list[LayerCost]:
    """Measure the shapes of every layer with a weight, in one pass of one update."""
    reference = tape.victim.mean
    images = reference.new_full((1, batch_size, *tape.victim.image_shape), 0.5)
    shapes = tape.shapes(images)
    costs = []
    for name, (inputs, outputs) in shapes.items():
        weight = tape.rules[name].layer.weight
        if not isinstance(weight, Tensor):
            continue
        width = weight[0].numel()
        rows = outputs.numel() // weight.shape[0] if weight.ndim > 1 else 0
        costs.append(LayerCost(rows, width, weight.shape[0], weight.numel(), inputs.numel() + outputs.numel()))
    return costs


def cost(
    name: Literal["generic", "rules", "gram"],
    layers: list[LayerCost],
    *,
    restarts: int,
    element: int,
    unfolds: bool = False,
) -> Cost:
    """Model one evaluation of one row.

    In units of a forward pass: forward 1, delta 1, weight gradient 1, and backwards through each of them 1, 2 and 1,
    plus 1 for the weight's derivative in the double backward, which frozen weights save.

    Args:
        name: the back end.
        layers: from `layer_costs`.
        restarts: rows that share an observed update.
        element: bytes of a number.
        unfolds: whether wide layers are unfolded too, as on an accelerator.
    """
    flops = traffic = held = 0.0
    for layer in layers:
        activations = 16 * layer.numbers
        if name == "gram" and layer.gram:
            squares = 6 * layer.rows**2 * (layer.inputs + layer.outputs)
            flops += 7 * layer.flops + squares
            traffic += _GRAM_PASSES * layer.parameters / restarts + activations
            patches = layer.rows * (layer.inputs + layer.outputs)
            held += layer.parameters / restarts + activations + 4 * patches + 3 * layer.rows**2
        else:
            flops += (8 if name == "generic" else 7) * layer.flops
            traffic += _EXPLICIT_PASSES * layer.parameters + activations
            held += (8 if name == "generic" else 6) * layer.parameters + activations
            if name != "generic" and (unfolds or layer.parameters <= NARROW):
                held += 4 * layer.rows * layer.inputs
    return Cost(flops, element * traffic, element * held)
