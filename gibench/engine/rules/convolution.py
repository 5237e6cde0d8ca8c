"""Convolutions: G = sum over the update's samples and positions of delta patch^T."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.engine.convolution import Geometry, frozen_convolution, weight_gradients
from gibench.engine.rules.base import Capture, Pair, Rule, pair
from gibench.engine.rules.linear import gram, gram_is_cheaper

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class ConvolutionRule(Rule[Convolution]):
    """Weight (O, I / groups, *kernel) and bias (O), with any stride, padding, dilation, groups and padding mode."""

    def __init__(self, layer: Convolution) -> None:
        super().__init__(layer)
        self.explicit = layer.padding_mode != "zeros" or isinstance(layer.padding, str)
        self.geometry = Geometry(
            stride=tuple(layer.stride),
            padding=(0,) * len(layer.stride) if self.explicit else tuple(int(side) for side in layer.padding),
            dilation=tuple(layer.dilation),
            groups=layer.groups,
        )

    def forward(self, inputs: Tensor, updates: int) -> Capture:
        """See `Rule`; what is captured is padded where the layer's padding is more than zeros around."""
        layer = self.layer
        if self.explicit:
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            inputs = F.pad(inputs, layer._reversed_padding_repeated_twice, mode=mode)
        return Capture(inputs, frozen_convolution(inputs, layer.weight, layer.bias, self.geometry))

    def gradients(self, inputs: Tensor, delta: Tensor, updates: int) -> dict[str, Tensor]:
        """See `Rule`."""
        weight = weight_gradients(inputs, delta, updates, self.layer.weight.shape, self.geometry)
        return {"weight": weight} if self.layer.bias is None else {"weight": weight, "bias": _bias(delta, updates)}

    def products(self, inputs: Tensor, delta: Tensor, updates: int, observed: dict[str, Tensor]) -> dict[str, Pair]:
        """See `Rule`; by Gram matrices of patches and delta where that is cheaper than G (two dimensions only)."""
        outputs, width = self.layer.weight.shape[0] // self.geometry.groups, self.layer.weight[0].numel()
        rows = delta[:, 0].numel() // updates
        if delta.ndim != 4 or not gram_is_cheaper(rows, width, outputs):
            return super().products(inputs, delta, updates, observed)
        patches, deltas = self._patches(inputs, updates), self._deltas(delta, updates)
        weights = observed["weight"].flatten(2).unflatten(1, (self.geometry.groups, -1))
        groups = [gram(patches[:, g], deltas[:, g], weights[:, g]) for g in range(self.geometry.groups)]
        cross, squared = (torch.stack(parts).sum(0) for parts in zip(*groups, strict=True))
        found = {"weight": (cross, squared)}
        if "bias" in observed:
            found["bias"] = pair(_bias(delta, updates), observed["bias"])
        return found

    def _patches(self, inputs: Tensor, updates: int) -> Tensor:
        """(U, groups, B * positions, I / groups * kernel)."""
        unfolded = F.unfold(
            inputs,
            self.layer.kernel_size,
            dilation=self.geometry.dilation,
            padding=self.geometry.padding,
            stride=self.geometry.stride,
        )
        return _by_group(unfolded, updates, self.geometry.groups)

    def _deltas(self, delta: Tensor, updates: int) -> Tensor:
        """(U, groups, B * positions, O / groups)."""
        return _by_group(delta.flatten(2), updates, self.geometry.groups)


def _by_group(columns: Tensor, updates: int, groups: int) -> Tensor:
    """(U * B, groups * K, T) -> (U, groups, B * T, K)."""
    split: Tensor = columns.unflatten(0, (updates, -1)).unflatten(2, (groups, -1))  # (U, B, groups, K, T)
    return split.permute(0, 2, 1, 4, 3).flatten(2, 3)


def _bias(delta: Tensor, updates: int) -> Tensor:
    per_sample: Tensor = delta.flatten(2).sum(2)
    return per_sample.reshape(updates, -1, per_sample.shape[1]).sum(1)
