"""Preconditioned conjugate gradients (Hestenes and Stiefel 1952) for one symmetric positive definite system."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Solution(NamedTuple):
    """x: (n,). iterations: products that it took. converged: whether the tolerance was reached.

    finite: whether all products, with the matrix and the preconditioner, were; x is what was found before.
    """

    x: Tensor
    iterations: int
    converged: bool
    finite: bool = True


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    tolerance: float,
    iterations: int,
) -> Solution:
    """Solve A x = b from x = 0 on.

    Every iterate is a direction of descent of x^T A x / 2 - b^T x, the more so the later, so that it may be stopped at
    any time. It stops by itself where A is not positive along a direction, or not finite.

    Args:
        product: (n,) -> A times it.
        right: b.
        precondition: (n,) -> about A^-1 times it; itself symmetric positive definite.
        tolerance: of the residual, in the preconditioner's norm, relative to that of b.
        iterations: at most.
    """
    x, rest = torch.zeros_like(right), right.clone()
    near = precondition(rest)
    direction, energy = near.clone(), rest @ near
    enough = tolerance**2 * energy
    for iteration in range(iterations):
        if not energy > enough:  # also where it is not finite
            return Solution(x, iteration, bool(energy <= enough), bool(energy.isfinite()))
        image = product(direction)
        curvature = direction @ image
        if not curvature > 0 or not torch.isfinite(curvature):
            return Solution(x, iteration + 1, converged=False, finite=bool(curvature.isfinite()))
        length = energy / curvature
        x += length * direction
        rest -= length * image
        near = precondition(rest)
        before, energy = energy, rest @ near
        direction = near + energy / before * direction
    return Solution(x, iterations, bool(energy <= enough))
