"""DCGAN's generator for 64 pixels by plain functions, read off PyTorch's example."""

import torch
import torch.nn.functional as F
from torch import Tensor


def face_dcgan(weights: dict[str, Tensor], latents: Tensor) -> Tensor:
    """Images (N, 3, 64, 64) in [0, 1] of latents (N, 100)."""
    maps = F.relu(_norm(F.conv_transpose2d(latents[:, :, None, None], weights["main.0.weight"]), weights, 1))
    for layer in (3, 6, 9):
        maps = F.conv_transpose2d(maps, weights[f"main.{layer}.weight"], stride=2, padding=1)
        maps = F.relu(_norm(maps, weights, layer + 1))
    maps = F.conv_transpose2d(maps, weights["main.12.weight"], stride=2, padding=1)
    return (torch.tanh(maps) + 1) / 2


def _norm(maps: Tensor, weights: dict[str, Tensor], layer: int) -> Tensor:
    mean, variance, scale, shift = (
        weights[f"main.{layer}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return scale * (maps - mean) / torch.sqrt(variance + 1e-5) + shift
