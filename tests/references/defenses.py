"""Defenses the slow way: one update, one feature, one image after the other, plain autograd."""

import torch
from torch import Tensor, nn


def soteria_scores(before: nn.Module, inputs: Tensor, *, eps: float) -> Tensor:
    """For normalized images (B, C, H, W), a network up to the layer, and one backward pass for each feature: (d,)."""
    count = before(inputs).shape[1]
    scores = torch.zeros(count, dtype=inputs.dtype)
    for feature in range(count):
        for image in inputs:
            leaf = image[None].clone().requires_grad_()
            value = before(leaf)[0, feature]
            (derivative,) = torch.autograd.grad(value, leaf)
            length = derivative.square().sum().sqrt().item()
            if length > 0:
                size = abs(value.item()) + eps
                scores[feature] += length / size if size else float("inf")
    return scores


def mixtures(images: Tensor, weights: Tensor, partners: Tensor) -> Tensor:
    """For each image b of (B, ...), the sum of its partners by their weights (B, k)."""
    rows = []
    for own, others in zip(weights.tolist(), partners.tolist(), strict=True):
        row = torch.zeros_like(images[0])
        for weight, other in zip(own, others, strict=True):
            row = row + weight * images[other]
        rows.append(row)
    return torch.stack(rows)
