"""Normalization layers: G_weight = sum of delta * normalized input, G_bias = sum of delta."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from gibench.engine.rules.base import Capture, Rule, UnsupportedLayerError


class BatchNormRule(Rule[_BatchNorm]):
    """BatchNorm with running statistics, or with those of each update's own B samples (rule R12)."""

    def check(self, layer: _BatchNorm) -> None:
        """See `Rule`; running statistics that a forward pass would move have no rule."""
        if layer.training and layer.track_running_stats:
            raise UnsupportedLayerError("BatchNorm moves its running statistics in training mode.")

    def forward(self, inputs: Tensor, updates: int) -> Capture:
        """See `Rule`; with running statistics the layer is one product and one sum for each channel."""
        layer = self.layer
        running = self._running()
        if running is None:
            normalized = _by_update(inputs, updates, layer.eps)
            return Capture(normalized, _affine(normalized, layer.weight, layer.bias))
        mean, scale = running
        factor = scale if layer.weight is None else scale * layer.weight
        shift = -mean * factor if layer.bias is None else layer.bias - mean * factor
        return Capture(
            inputs, torch.addcmul(_channels(shift, inputs), inputs.to(factor.dtype), _channels(factor, inputs))
        )

    def gradients(self, inputs: Tensor, delta: Tensor, updates: int) -> dict[str, Tensor]:
        """See `Rule`."""
        if self.layer.weight is None:
            return {}
        found = _per_channel(inputs, delta, updates)
        running = self._running()
        if running is not None:  # sum of delta (a - mean) scale, without another tensor of the size of a
            mean, scale = running
            found["weight"] = scale * (found["weight"] - mean * found["bias"])
        return found

    def _running(self) -> tuple[Tensor, Tensor] | None:
        """Running mean and one over the running deviation, where they are used."""
        layer = self.layer
        if layer.running_mean is None or layer.running_var is None:
            return None
        return layer.running_mean, (layer.running_var + layer.eps).rsqrt()


class GroupNormRule(Rule[nn.GroupNorm]):
    """GroupNorm: each sample by the statistics of its own groups of channels."""

    def forward(self, inputs: Tensor, updates: int) -> Capture:
        """See `Rule`."""
        layer = self.layer
        normalized = F.group_norm(inputs, layer.num_groups, eps=layer.eps)
        return Capture(normalized, _affine(normalized, layer.weight, layer.bias))

    def gradients(self, inputs: Tensor, delta: Tensor, updates: int) -> dict[str, Tensor]:
        """See `Rule`."""
        return _per_channel(inputs, delta, updates)


class LayerNormRule(Rule[nn.LayerNorm]):
    """LayerNorm: each sample, or each position of it, over its last dimensions."""

    def forward(self, inputs: Tensor, updates: int) -> Capture:
        """See `Rule`."""
        layer = self.layer
        normalized = F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
        output = normalized * layer.weight
        return Capture(normalized, output if layer.bias is None else output + layer.bias)

    def gradients(self, inputs: Tensor, delta: Tensor, updates: int) -> dict[str, Tensor]:
        """See `Rule`."""
        shape = self.layer.weight.shape
        weight, bias = (
            values.reshape((updates, -1, *shape)).sum(1) for values in (delta * inputs.to(delta.dtype), delta)
        )
        return {"weight": weight, "bias": bias}


def _by_update(inputs: Tensor, updates: int, eps: float) -> Tensor:
    """Normalize (U * B, C, ...) by mean and biased variance over B and space, for each update and channel."""
    grouped = inputs.unflatten(0, (updates, -1))
    axes = [1, *range(3, grouped.ndim)]
    centered = grouped - grouped.mean(axes, keepdim=True)
    variance = centered.square().mean(axes, keepdim=True)
    normalized: Tensor = centered * torch.rsqrt(variance + eps)
    return normalized.flatten(0, 1)


def _affine(normalized: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        normalized = normalized * _channels(weight, normalized)
    return normalized if bias is None else normalized + _channels(bias, normalized)


def _channels(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.ndim - 2))


def _per_channel(normalized: Tensor, delta: Tensor, updates: int) -> dict[str, Tensor]:
    weight, bias = (
        values.unflatten(0, (updates, -1)).transpose(1, 2).flatten(2).sum(2)
        for values in (delta * normalized.to(delta.dtype), delta)
    )
    return {"weight": weight, "bias": bias}
