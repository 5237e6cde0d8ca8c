"""Likelihood of magnitude pruning: equality on the support, an inequality off it."""

from typing import Literal

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Likelihood
from gibench.likelihoods.products import add_up
from gibench.types import Update


class Support(Likelihood):
    """D(M * g(x), g) + weight * sum_j (1 - M_j) max(0, |g_j(x)| - tau)^2, with M = 1[g != 0].

    Magnitude pruning sends the largest entries as they are: what it erased is not zero but at most tau, the smallest
    magnitude that was kept. tau is read off the observed update.

    Args:
        distance: D on the support, which gets both updates with zeros off it.
        scope: "tensor" where each parameter has its own tau, "global" where all share one.
        weight: of the inequality.
    """

    def __init__(
        self, distance: Likelihood, *, scope: Literal["tensor", "global"] = "tensor", weight: float = 1.0
    ) -> None:
        super().__init__()
        if not weight >= 0 or scope not in ("tensor", "global"):
            raise ConfigurationError(
                f"weight is {weight} and scope {scope!r}; a weight is >= 0, a scope 'tensor' or 'global'."
            )
        self.distance = distance
        self.scope = scope
        self.weight = weight

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        kept = {name: value != 0 for name, value in observed.items()}
        on: Tensor = self.distance(_times(simulated, kept), observed)
        bounds = self._bounds(observed)
        excess = {
            name: torch.where(kept[name], 0.0, (value.abs() - bounds[name]).clamp_min(0)).square().flatten(1).sum(1)
            for name, value in simulated.items()
        }
        return on + self.weight * add_up(excess)

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`: those of the distance, and under further names those of the inequality.

        Those are zero on the support, and where the inequality holds.
        """
        kept = {name: value != 0 for name, value in observed.items()}
        bounds = self._bounds(observed)
        excess = {name: value - value.clamp(-bounds[name], bounds[name]) for name, value in simulated.items()}
        return self.distance.residuals(_times(simulated, kept), observed) | {
            f"{name}, erased": (2 * self.weight) ** 0.5 * torch.where(kept[name], 0.0, value)
            for name, value in excess.items()
        }

    def compared(self, observed: Update) -> Update:
        """See `Likelihood`: the support; an inequality is no comparison."""
        return {name: mask & (observed[name] != 0) for name, mask in self.distance.compared(observed).items()}

    def _bounds(self, observed: Update) -> Update:
        """Tau of each parameter, (U, 1, ...); where nothing was kept there is no bound but infinity."""
        smallest = {
            name: torch.where(value != 0, value.abs(), torch.inf).flatten(1).amin(1) for name, value in observed.items()
        }
        if self.scope == "global":
            least = torch.stack(list(smallest.values())).amin(0)
            smallest = dict.fromkeys(smallest, least)
        return {name: value.reshape(-1, *[1] * (observed[name].ndim - 1)) for name, value in smallest.items()}


def _times(tensors: Update, masks: Update) -> Update:
    return {name: value * masks[name] for name, value in tensors.items()}
