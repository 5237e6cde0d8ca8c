"""Magnitude pruning, or top-k compression: only the largest entries are sent."""

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from gibench.defenses.base import Defense, Private, Release
from gibench.errors import ConfigurationError
from gibench.likelihoods import Hypothesis, Likelihood, Support
from gibench.types import Observation, Update


class MagnitudePruning(Defense):
    """Keep the ceil((1 - p) n) entries of largest magnitude, of each tensor or of the whole update; others become 0.

    Given x nothing is random: p(g | x) is a Dirac on the kept entries, and off them says |g_j(x)| <= tau, the least
    kept magnitude. Ties are broken by the order of the entries. Errors are not fed back, as in the published
    evaluations, whose percentages mean the pruned share here, the kept one there.

    Args:
        pruned: p, in [0, 1): the share that is not sent.
        scope: "tensor" (GradAttack, Soteria's comparison, GIFD) or "global" (Learning to Invert).
    """

    def __init__(self, *, pruned: float, scope: Literal["tensor", "global"] = "tensor") -> None:
        super().__init__()
        if not 0 <= pruned < 1:
            raise ConfigurationError(f"pruned is {pruned}; prune a share in [0, 1).")
        if scope not in ("tensor", "global"):
            raise ConfigurationError(f"scope is {scope!r}; choose 'tensor' or 'global'.")
        self.pruned = pruned
        self.scope: Literal["tensor", "global"] = scope

    def sample(self, private: Private) -> Release:
        """See `Defense`."""
        update = private.simulate(private.images, private.labels)
        if self.scope == "tensor":
            return Release({name: self._largest(value) for name, value in update.items()}, {})
        whole = self._largest(torch.cat([value.flatten(1) for value in update.values()], 1))
        parts = whole.split([value[0].numel() for value in update.values()], 1)
        released: Update = {name: part.reshape(update[name].shape) for name, part in zip(update, parts, strict=True)}
        return Release(released, {})

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`."""
        return Hypothesis(Support(distance, scope=self.scope), observation)

    def _largest(self, update: Tensor) -> Tensor:
        flat = update.flatten(1)
        count = flat.shape[1] - math.floor(Fraction(str(self.pruned)) * flat.shape[1])  # 1 - 0.7 is above 3/10
        size = flat.abs()
        least = size.topk(count, dim=1).values[:, -1:]  # sorting all takes three to six times as long
        larger, ties = ~(size <= least), size == least  # what is not finite stays, to be seen
        room = count - larger.sum(1, keepdim=True)
        kept = larger | (ties & (ties.cumsum(1, dtype=torch.int32) <= room))
        return flat.where(kept, 0).reshape(update.shape)
