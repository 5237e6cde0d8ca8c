"""GIML, one image and one restart after the other: a copy of the generator for each, and PyTorch's own Adam."""

import copy

import torch
from references.gias import MILESTONES, cost
from torch import Tensor

from gibench.search import Generator
from gibench.victims import Victim


def searched(
    variables: list[Tensor], value: object, steps: int, rate: float, cost_of: object
) -> tuple[list[Tensor], Tensor]:
    """Adam with Inverting Gradients' schedule; return the variables with the least value, and their cost."""
    optimizer = torch.optim.Adam(variables, lr=rate)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [int(steps // each) for each in MILESTONES], gamma=0.1)
    least, kept, matched = torch.tensor(torch.inf), variables, torch.tensor(torch.inf)
    for _ in range(steps):
        found, match = value(), cost_of()  # type: ignore[operator]
        if found < least:
            least, matched, kept = found.detach(), match.detach(), [each.detach().clone() for each in variables]
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        schedule.step()
    return kept, matched


def found_weights(
    generator: Generator,
    latents: list[Tensor],
    label: Tensor,
    victim: Victim,
    observed: dict[str, Tensor],
    *,
    steps: tuple[int, int],
    rates: tuple[float, float],
    latent_weight: float,
) -> list[Tensor]:
    """The weights that the best of several latents (1, Z) leads to, for the update of one image."""
    victim = copy.deepcopy(victim).requires_grad_(True)
    answers = []
    for start in latents:
        own = copy.deepcopy(generator).requires_grad_(True)
        latent = start.clone().requires_grad_(True)

        def match(own: Generator = own, latent: Tensor = latent) -> Tensor:
            return cost(own(latent), label, victim, observed)

        def penalized(match: object = match, latent: Tensor = latent) -> Tensor:
            return match() + latent_weight / 2 * latent.square().sum()  # type: ignore[operator,no-any-return]

        (best,), _ = searched([latent], penalized, steps[0], rates[0], match)
        with torch.no_grad():
            latent.copy_(best)
        answers.append(searched([*own.parameters()], match, steps[1], rates[1], match))
    return min(answers, key=lambda answer: float(answer[1]))[0]


class Outer:
    """The outer loop: Adam on |w - mean of w'|^2 / 2."""

    def __init__(self, generator: Generator, rate: float) -> None:
        self.generator = generator
        self.optimizer = torch.optim.Adam(generator.parameters(), lr=rate)

    def step(self, found: list[list[Tensor]]) -> None:
        """Found: for each image its weights."""
        for weight, *others in zip(self.generator.parameters(), *found, strict=True):
            weight.grad = torch.zeros_like(weight)
            for other in others:
                weight.grad += (weight.detach() - other) / len(found)
        self.optimizer.step()
