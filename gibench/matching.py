"""Which reconstruction stands for which private image: one optimal assignment per update (rule R4)."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gibench.errors import ShapeError


def match(reconstructed: Tensor, private: Tensor) -> Tensor:
    r"""Assign the reconstructions of each update to its private images so that the summed MSE is smallest.

    .. math:: \pi_u = \arg\min_{\pi \in S_B} \sum_b \lVert \hat x_{u, \pi(b)} - x_{u, b} \rVert_2^2

    Each reconstruction is used once, and only within its update; every metric uses this one assignment. One that is not
    finite costs the same everywhere: it takes the place that the others leave, and if none is finite the order stays.

    Args:
        reconstructed: (U, B, C, H, W); may hold NaN.
        private: (U, B, C, H, W).

    Returns:
        (U, B), int64, on the device of `reconstructed`: its [u, permutation[u, b]] goes with `private[u, b]`.

    Raises:
        ShapeError: unless both have the same five dimensions.
    """
    if reconstructed.ndim != 5 or reconstructed.shape != private.shape:
        raise ShapeError(
            f"cannot match {tuple(reconstructed.shape)} to {tuple(private.shape)}; both need the same (U, B, C, H, W)."
        )
    rows = [_assign(_costs(found, truth)) for found, truth in zip(reconstructed, private, strict=True)]
    return torch.stack(rows).to(reconstructed.device)


def reorder(values: Tensor, permutation: Tensor) -> Tensor:
    """Put `values` (U, B, ...) of the reconstructions into the order of the private images, as `match` found it."""
    updates = torch.arange(len(values), device=values.device)[:, None]
    return values[updates, permutation.to(values.device)]


def _costs(reconstructed: Tensor, private: Tensor) -> Tensor:
    """Squared distances (B private, B reconstructed) of one update.

    ||x - y||^2 = ||x||^2 - 2 x.y + ||y||^2 needs no (B, B, C, H, W) differences; in float64 nothing is lost in it. On
    the CPU: the assignment is found there, and some devices have no float64.
    """
    found, truth = reconstructed.cpu().double().flatten(1), private.cpu().double().flatten(1)
    costs = truth.square().sum(1)[:, None] - 2 * truth @ found.T + found.square().sum(1)
    return costs.masked_fill(~costs.isfinite().all(0), 0.0)


def _assign(costs: Tensor) -> Tensor:
    return torch.as_tensor(linear_sum_assignment(costs.numpy())[1], dtype=torch.int64)
