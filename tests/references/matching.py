"""Gradient matching the peers' way: one image, one restart, plain autograd, torch's own optimizers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def gradient(victim: nn.Module, images: Tensor, labels: Tensor, *, create_graph: bool = False) -> list[Tensor]:
    """Gradient of the mean cross-entropy of one batch (B, C, H, W), as a list over the parameters."""
    parameters = [parameter.detach().requires_grad_() for parameter in victim.parameters()]
    names = [name for name, _ in victim.named_parameters()]
    logits = torch.func.functional_call(victim, dict(zip(names, parameters, strict=True)), (images,))
    return list(torch.autograd.grad(F.cross_entropy(logits, labels), parameters, create_graph=create_graph))


def fedavg(victim: nn.Module, images: Tensor, labels: Tensor, *, steps: int, size: int, rate: float) -> list[Tensor]:
    """Server weights minus the weights after local SGD, by torch.optim.SGD on a copy of the victim."""
    import copy

    local = copy.deepcopy(victim).requires_grad_()
    optimizer = torch.optim.SGD(local.parameters(), lr=rate)
    count = len(images)
    for step in range(steps):
        rows = [(step * size + offset) % count for offset in range(size)]
        optimizer.zero_grad()
        F.cross_entropy(local(images[rows]), labels[rows]).backward()
        optimizer.step()
    return [(before - after).detach() for before, after in zip(victim.parameters(), local.parameters(), strict=True)]


def cosine_distance(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """1 - cosine of the concatenated tensors."""
    a, b = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (left, right))
    return 1 - torch.dot(a, b) / (a.norm() * b.norm())


def squared_distance(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Sum of squared differences."""
    return sum(((a - b) ** 2).sum() for a, b in zip(left, right, strict=True))  # type: ignore[return-value]


def total_variation(images: Tensor) -> Tensor:
    """Anisotropic mean TV of one batch, pixel by pixel."""
    count, channels, height, width = images.shape
    across = [
        (images[b, c, h, w + 1] - images[b, c, h, w]).abs()
        for b in range(count)
        for c in range(channels)
        for h in range(height)
        for w in range(width - 1)
    ]
    down = [
        (images[b, c, h + 1, w] - images[b, c, h, w]).abs()
        for b in range(count)
        for c in range(channels)
        for h in range(height - 1)
        for w in range(width)
    ]
    return torch.stack(across).mean() + torch.stack(down).mean()


def lbfgs(function: Callable[[Tensor], Tensor], start: Tensor, *, steps: int, history: int) -> Tensor:
    """torch.optim.LBFGS on one problem, as DLG calls it; returns the last iterate."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([point], lr=1, history_size=history)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = function(point)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return point.detach()


def boxed_adam(function: Callable[[Tensor], Tensor], start: Tensor, *, steps: int, rate: float, signed: bool) -> Tensor:
    """Inverting Gradients' loop on one problem over [0, 1]; returns every iterate that it evaluates."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([point], lr=rate)
    milestones = [steps // 2.667, steps // 1.6, steps // 1.142]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=milestones, gamma=0.1)  # type: ignore[arg-type]
    visited = []
    for _ in range(steps):
        visited.append(point.detach().clone())
        optimizer.zero_grad()
        function(point).backward()
        if signed and point.grad is not None:
            point.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            point.clamp_(0, 1)
    return torch.stack(visited)
