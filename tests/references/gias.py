"""GIAS, one image and one restart after the other: a copy of the generator for each, and PyTorch's own Adam."""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from gibench.search import Generator
from gibench.victims import Victim

MILESTONES = (2.667, 1.6, 1.142)


def cost(images: Tensor, labels: Tensor, victim: Victim, observed: dict[str, Tensor]) -> Tensor:
    """One minus the cosine between the gradient of a batch and the observed one."""
    loss = F.cross_entropy(victim(images), labels)
    gradients = torch.autograd.grad(loss, list(victim.parameters()), create_graph=True)
    pairs = list(zip(gradients, (observed[name] for name, _ in victim.named_parameters()), strict=True))
    inner = sum((a * b).sum() for a, b in pairs)
    norms = sum(a.square().sum() for a, _ in pairs) * sum(b.square().sum() for _, b in pairs)
    return 1 - inner / norms.sqrt()


def attack(
    generator: Generator,
    latent: Tensor,
    labels: Tensor,
    victim: Victim,
    observed: dict[str, Tensor],
    *,
    steps: tuple[int, int],
    rates: tuple[float, float],
) -> tuple[Tensor, Tensor, int]:
    """Return the images of the iterate with the least cost after each stage, and their costs; latent: (B, Z)."""
    victim = copy.deepcopy(victim).requires_grad_(True)
    copies = [copy.deepcopy(generator).requires_grad_(True) for _ in latent]
    found = latent.clone().requires_grad_(True)
    best, images = torch.tensor(torch.inf), torch.empty(0)
    for stage in range(2):
        variables = [found] if stage == 0 else [weight for each in copies for weight in each.parameters()]
        optimizer = torch.optim.Adam(variables, lr=rates[stage])
        milestones = [int(steps[stage] // divisor) for divisor in MILESTONES]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        kept = [value.detach().clone() for value in variables]
        least = torch.tensor(torch.inf)
        for _ in range(steps[stage]):
            drawn = torch.cat([each(row[None]) for each, row in zip(copies, found, strict=True)])
            value = cost(drawn, labels, victim, observed)
            if value < least:
                least, kept = value.detach(), [each.detach().clone() for each in variables]
            for variable, slope in zip(variables, torch.autograd.grad(value, variables), strict=True):
                variable.grad = slope
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            for variable, value in zip(variables, kept, strict=True):
                variable.copy_(value)
            if least < best:
                best = least
                images = torch.cat([each(row[None]) for each, row in zip(copies, found, strict=True)])
    return images, best, sum(steps)
