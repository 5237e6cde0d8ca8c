"""Group consistency: restarts of one update agree (GradInversion, Yin et al., CVPR 2021)."""

from itertools import groupby
from typing import get_args

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.priors.base import Prior, standardized
from gibench.priors.registration import Registration, register
from gibench.types import Observation


class GroupConsistency(Prior):
    r"""Every restart is pulled to what the restarts of its update have in common.

    .. math:: R(x_s) = \frac{w}{B} \sum_b \lVert (x_{s, b} - E_b) / \sigma \rVert_2

    with the consensus E of S restarts, un-squared for each image and averaged over the batch, in the units of the
    victim's network (deviation sigma per channel). E is the mean of the restarts; with a `registration`, each of them
    is then moved onto that mean, and E is the mean of what was moved. It is a constant to the derivative, built before
    evaluation `start`, counted from 0, and again every `refresh` evaluations. The best iterate of a row is that under
    the last consensus, since values under different ones cannot be compared.

    Restarts may have found the images of a batch in another order. Where labels are distinct, they settle it; among
    images of one label, and among all where labels are searched, the images of each restart are assigned to those of
    the first by least squared distance. A restart that is not finite has no say.

    The paper registers by RANSAC-flow, a network trained for it; here scikit-image estimates a translation or an
    optical flow. Of the public codes, GIAS's takes the mean alone, from iteration 500 on, every 100 iterations, and
    divides the norm of the whole batch by the pixels of one channel; breaching leaves the term out; AIJack's does
    nothing, because its loss never gets the group.

    Args:
        weight: w, at least 0, relative to the likelihood's scale.
        registration: "none", "translation" or "flow"; see `gibench.priors.registration`.
        start: evaluations before the first consensus.
        refresh: evaluations from one consensus to the next.
    """

    couples = True

    def __init__(
        self, *, weight: float, registration: Registration = "none", start: int = 500, refresh: int = 100
    ) -> None:
        super().__init__()
        if registration not in get_args(Registration):
            raise ConfigurationError(f"registration is {registration!r}; choose {', '.join(get_args(Registration))}.")
        if not weight >= 0 or start < 0 or refresh < 1:
            raise ConfigurationError(
                f"group consistency has weight {weight}, start {start}, refresh {refresh}; they are >= 0, >= 0, >= 1."
            )
        self.weight = weight
        self.registration: Registration = registration
        self.start = start
        self.refresh = refresh
        self._evaluations = 0
        self._targets: Tensor | None = None

    def for_search(self) -> "GroupConsistency":
        """See `Prior`: one that has seen nothing yet."""
        return GroupConsistency(
            weight=self.weight, registration=self.registration, start=self.start, refresh=self.refresh
        )

    def advance(self, images: Tensor, observation: Observation) -> bool:
        """See `Prior`; builds the consensus when its time has come."""
        since = self._evaluations - self.start
        self._evaluations += 1
        if since < 0 or since % self.refresh:
            return False
        groups = [list(rows) for _, rows in groupby(range(len(images)), key=lambda row: observation.seeds[row])]
        labels = observation.labels
        found = [
            consensus(images[rows], None if labels is None else labels[rows[0]], self.registration) for rows in groups
        ]
        self._targets = torch.cat(found)
        return True

    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`; 0 before the first consensus."""
        if self._targets is None:
            return 0.0 * images.flatten(1).sum(1)
        if len(self._targets) != len(images):
            raise ConfigurationError("restarts that are pulled together are searched together, from start to end.")
        difference = standardized(images, observation) - standardized(self._targets, observation)
        norms: Tensor = difference.flatten(2).norm(dim=2)
        return self.weight * norms.mean(1)


def consensus(candidates: Tensor, labels: Tensor | None, registration: Registration) -> Tensor:
    """Return what each of S restarts of one update is pulled to, in the order of its own images.

    Args:
        candidates: (S, B, C, H, W) in pixels.
        labels: (B,), the same for all restarts, or None where each has its own.
        registration: see `GroupConsistency`.

    Returns:
        (S, B, C, H, W): the consensus, B images in S orders. Candidates that are not finite, where all are lost.
    """
    finite = candidates.flatten(1).isfinite().all(1).nonzero().flatten().tolist()
    if not finite:
        return candidates.clone()
    orders = {row: same_order(candidates[finite[0]], candidates[row], labels) for row in finite}
    group = torch.stack([candidates[row][order] for row, order in orders.items()])
    mean = group.mean(0)
    if registration != "none":
        mean = torch.stack([register(restart, mean, registration) for restart in group]).mean(0)
    targets = mean.repeat(len(candidates), 1, 1, 1, 1)
    for row, order in orders.items():
        targets[row, order] = mean
    return targets


def same_order(first: Tensor, other: Tensor, labels: Tensor | None) -> Tensor:
    """Return (B,), int64: `other[order]` are the images that go with those of `first`, by label, then by distance.

    Args:
        first: (B, C, H, W).
        other: (B, C, H, W).
        labels: (B,) of both, or None.
    """
    size = len(first)
    if labels is not None and len(labels.unique()) == size:
        return torch.arange(size, device=first.device)
    costs = torch.cdist(first.flatten(1).double().cpu(), other.flatten(1).double().cpu()).square().numpy()
    if labels is not None:
        known = labels.cpu().numpy()
        costs = np.where(known[:, None] == known, costs, np.inf)
    return torch.as_tensor(linear_sum_assignment(costs)[1], dtype=torch.int64, device=first.device)
