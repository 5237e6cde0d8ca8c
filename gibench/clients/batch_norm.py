"""BatchNorm regimes: the same victim leaks differently with running, private or shared statistics (rule R12)."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gibench.victims import Victim


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any layer normalizes over the batch."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def has_running_statistics(module: nn.Module) -> bool:
    """Whether every layer that normalizes over the batch can do so without its statistics."""
    return all(layer.running_mean is not None for layer in module.modules() if isinstance(layer, _BatchNorm))


def use_batch_statistics(module: nn.Module) -> None:
    """Drop the running statistics, in place: then every mode normalizes by the batch's own, and no buffer moves.

    The server knows its own model: what it had stays on each layer, for the attacker to read, as the buffers
    `server_mean` and `server_var`, which no forward pass uses and no state dictionary holds.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            if layer.running_mean is not None:
                layer.register_buffer("server_mean", layer.running_mean, persistent=False)
                layer.register_buffer("server_var", layer.running_var, persistent=False)
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False


def batch_statistics(victim: Victim, images: Tensor) -> dict[str, Tensor]:
    """Mean and biased variance at the input of each BatchNorm layer, for each of U batches.

    Args:
        victim: the model at the weights that the server sent.
        images: (U, B, C, H, W) in [0, 1].

    Returns:
        Layer name -> (U, 2, channels).
    """
    found: dict[str, list[Tensor]] = {}

    def record(name: str, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        found.setdefault(name, []).append(torch.stack([values.mean(1), values.var(1, correction=0)]))

    layers = [(name, layer) for name, layer in victim.named_modules() if isinstance(layer, _BatchNorm)]
    handles = [layer.register_forward_pre_hook(partial(record, name)) for name, layer in layers]
    try:
        with torch.no_grad():
            for batch in images:
                victim(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.stack(rows) for name, rows in found.items()}
