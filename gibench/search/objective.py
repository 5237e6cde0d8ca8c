"""The objective of gradient matching: -log p(g | x) - log p(x) for R rows at once, with its derivative and its best."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gibench.likelihoods import Likelihood
from gibench.priors import Prior
from gibench.types import Observation

Variables = dict[str, Tensor]
"""What is searched: name -> (R, *shape), R rows of independent problems."""


class Guess(NamedTuple):
    """What variables stand for: images (R, B, C, H, W) in pixels, labels (R, B) or probabilities (R, B, K)."""

    images: Tensor
    labels: Tensor


class Evaluation(NamedTuple):
    """value: (R,), likelihood and priors. gradient: its derivative, name -> (R, *shape)."""

    value: Tensor
    gradient: Variables


class Objective:
    """Evaluates rows, counts the evaluations of each and keeps the best iterate of each.

    The best is the one with the least value, likelihood and priors together; its likelihood term alone is kept as
    `match`, by which restarts are compared, as Inverting Gradients does.

    Args:
        observation: of R rows.
        likelihood, priors: the terms.
        decode: variables -> Guess, differentiable.
        project: variables -> the nearest admissible variables.
    """

    def __init__(
        self,
        observation: Observation,
        *,
        likelihood: Likelihood,
        priors: Sequence[Prior],
        decode: Callable[[Variables], Guess],
        project: Callable[[Variables], Variables],
    ) -> None:
        self.observation = observation
        self.likelihood = likelihood
        self.priors = priors
        self.decode = decode
        self.project = project
        worst = next(iter(observation.update.values())).new_full((observation.updates,), torch.inf)
        self.value, self.match = worst, worst.clone()
        self.best: Variables = {}
        self.evaluations = torch.zeros(observation.updates, dtype=torch.int64)

    def __call__(self, variables: Variables, running: Tensor | None = None) -> Evaluation:
        """Evaluate all rows; rows outside `running` (R,), bool, are neither counted nor kept."""
        leaves = {name: value.detach().requires_grad_() for name, value in variables.items()}
        guess = self.decode(leaves)
        observed = self.observation
        simulated = observed.simulate(guess.images, guess.labels) if self.likelihood.uses_update else {}
        match = self.likelihood(simulated, observed.update)
        value = sum((prior(guess.images, observed) for prior in self.priors), start=match)
        gradients = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
        self._keep(variables, value.detach(), match.detach(), running)
        return Evaluation(value.detach(), dict(zip(leaves, gradients, strict=True)))

    def _keep(self, variables: Variables, value: Tensor, match: Tensor, running: Tensor | None) -> None:
        better = value < self.value  # false for NaN
        if running is not None:
            better &= running
        self.evaluations += 1 if running is None else running.cpu().long()
        self.value = torch.where(better, value, self.value)
        self.match = torch.where(better, match, self.match)
        for name, tensor in variables.items():
            rows = better.reshape(-1, *[1] * (tensor.ndim - 1))
            self.best[name] = torch.where(rows, tensor, self.best.get(name, tensor)).detach()
