"""The Jacobian of a gradient by plain double backward, row by row, and what a linear model's posterior mean reaches."""

import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn.functional import cross_entropy

from gibench.victims import Victim


def update_jacobian(victim: Victim, images: Tensor, labels: Tensor) -> Tensor:
    """(P, N): derivatives of the gradient of the mean cross-entropy by the pixels of `images` (B, C, H, W)."""
    parameters = [parameter.requires_grad_() for parameter in victim.parameters()]

    def update(pixels: Tensor) -> Tensor:
        loss = cross_entropy(victim(pixels), labels)
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, create_graph=True)])

    return jacobian(update, images).flatten(1)  # type: ignore[no-any-return, no-untyped-call]


def posterior_errors(
    matrix: Tensor, *, sigma: float, prior_variance: float, draws: int, source: torch.Generator
) -> Tensor:
    """Squared errors per pixel (draws,) of the posterior mean of x ~ N(0, tau^2 I), given g = J x + sigma e."""
    rows, columns = matrix.shape
    hidden = prior_variance**0.5 * torch.randn(columns, draws, generator=source, dtype=matrix.dtype)
    seen = matrix @ hidden + sigma * torch.randn(rows, draws, generator=source, dtype=matrix.dtype)
    covariance = prior_variance * matrix @ matrix.mT + sigma**2 * torch.eye(rows, dtype=matrix.dtype)
    answer = prior_variance * matrix.mT @ torch.linalg.solve(covariance, seen)
    return (answer - hidden).square().mean(0)
