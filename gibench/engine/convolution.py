"""Convolutions for attacks: weights that stay fixed, and the weight gradient of each update in a shared batch."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NARROW = 2**14  # weights; at LeNet's 900 to 3,600 unfolding is twice as fast, at ResNet-18's it is slower


class Geometry(NamedTuple):
    """How a convolution moves: one entry for each dimension of space, and its groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def frozen_convolution(inputs: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve (N, C, *space) with a weight that needs no gradient, twice differentiable in `inputs`.

    PyTorch's own double backward also computes the derivative for the weight, needed or not: about an eighth of the
    work of an attack's step.
    """
    if torch.is_autocast_enabled(inputs.device.type):
        inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
    output: Tensor = _Frozen.apply(inputs, weight, geometry)
    return output if bias is None else output + bias.to(output.dtype).reshape(-1, *[1] * (output.ndim - 2))


def weight_gradients(inputs: Tensor, delta: Tensor, updates: int, shape: torch.Size, geometry: Geometry) -> Tensor:
    """Return each update's weight gradient (U, *shape), from a batch (N, C, *space) and delta (N, O, *space).

    On a CPU a loop over the native kernels is the fastest, except for narrow layers; on an accelerator the loop's
    launches cost more than unfolding, which is one batched product. Three dimensions cannot be unfolded.
    """
    inputs = inputs.to(delta.dtype)
    wide = inputs.device.type == "cpu" and shape.numel() > NARROW
    if wide or len(shape) != 4 or geometry.groups > 1:
        gradients: Tensor = _WeightGradients.apply(inputs, delta, updates, shape, geometry)
        return gradients
    return by_unfolding(inputs, delta, updates, shape, geometry)


def by_unfolding(inputs: Tensor, delta: Tensor, updates: int, shape: torch.Size, geometry: Geometry) -> Tensor:
    """`weight_gradients` of two dimensions and one group, as one product of patches and delta."""
    patches = F.unfold(inputs, shape[2:], dilation=geometry.dilation, padding=geometry.padding, stride=geometry.stride)
    a, d = patches.unflatten(0, (updates, -1)), delta.flatten(2).unflatten(0, (updates, -1))
    return torch.einsum("ubot,ubkt->uok", d, a).reshape(updates, *shape)


def _convolve(inputs: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    zeros = [0] * len(stride)
    return torch.convolution(inputs, weight, None, stride, padding, dilation, False, zeros, groups)


def _derivative(delta: Tensor, inputs: Tensor, weight: Tensor, geometry: Geometry, *, of_inputs: bool) -> Tensor:
    """The derivative for the inputs or for the weight; the other tensor gives only its shape where it is not needed."""
    stride, padding, dilation, groups = geometry
    zeros = [0] * len(stride)
    mask = (of_inputs, not of_inputs, False)
    found = torch.ops.aten.convolution_backward(
        delta, inputs, weight, None, stride, padding, dilation, False, zeros, groups, mask
    )
    derivative: Tensor = found[0 if of_inputs else 1]
    return derivative


class _Frozen(torch.autograd.Function):
    """The convolution; its backward is `_FrozenTransposed`, whose backward is the convolution again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = inputs.shape, geometry
        return _convolve(inputs, weight.to(inputs.dtype), geometry)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> Any:  # noqa: ANN401
        return _FrozenTransposed.apply(deltas[0], ctx.saved_tensors[0], ctx.shape, ctx.geometry), None, None


class _FrozenTransposed(torch.autograd.Function):
    """The derivative for the inputs, as a linear map of delta."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weight)
        ctx.geometry = geometry
        inputs = delta.new_empty(1).expand(shape)
        return _derivative(delta, inputs, weight.to(delta.dtype), geometry, of_inputs=True)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> Any:  # noqa: ANN401
        return _Frozen.apply(directions[0], ctx.saved_tensors[0], ctx.geometry), None, None, None


class _WeightGradients(torch.autograd.Function):
    """Each update's weight gradient by the native kernel, in a loop."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        inputs: Tensor,
        delta: Tensor,
        updates: int,
        shape: torch.Size,
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(inputs, delta)
        ctx.updates, ctx.geometry = updates, geometry
        weight = inputs.new_empty(1).expand(shape)
        parts = zip(delta.chunk(updates), inputs.chunk(updates), strict=True)
        return torch.stack([_derivative(d, a, weight, geometry, of_inputs=False) for d, a in parts])

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> Any:  # noqa: ANN401
        inputs, delta = ctx.saved_tensors
        rows = list(zip(inputs.chunk(ctx.updates), delta.chunk(ctx.updates), directions[0], strict=True))
        of_inputs = of_delta = None
        if ctx.needs_input_grad[0]:
            of_inputs = torch.cat([_derivative(d, a, v, ctx.geometry, of_inputs=True) for a, d, v in rows])
        if ctx.needs_input_grad[1]:
            of_delta = torch.cat([_convolve(a, v, ctx.geometry) for a, _, v in rows])
        return of_inputs, of_delta, None, None, None
