"""How published code attacks: one image, one restart, plain autograd, the same objective and the same optimizer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OneAtATime:
    """Inverting Gradients on one update: cosine distance and total variation, signed Adam, a box.

    Args:
        victim: the model; its parameters get gradients.
        observed: the update, per parameter.
        labels: (B,).
        start: (B, C, H, W), in pixels.
        tv: weight of the anisotropic total variation.
    """

    def __init__(self, victim: nn.Module, observed: list[Tensor], labels: Tensor, start: Tensor, *, tv: float) -> None:
        self.victim, self.observed, self.labels, self.tv = victim, observed, labels, tv
        self.parameters = list(victim.parameters())
        self.images = start.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.images], lr=0.1)

    def objective(self) -> Tensor:
        """1 - cos(g(x), g) + tv TV(x)."""
        loss = F.cross_entropy(self.victim(self.images), self.labels)
        gradient = torch.autograd.grad(loss, self.parameters, create_graph=True)
        cross = sum((a * b).sum() for a, b in zip(gradient, self.observed, strict=True))
        own = sum(a.square().sum() for a in gradient)
        other = sum(b.square().sum() for b in self.observed)
        right = (self.images[..., 1:] - self.images[..., :-1]).abs().mean()
        down = (self.images[..., 1:, :] - self.images[..., :-1, :]).abs().mean()
        value: Tensor = 1 - cross / (own.sqrt() * other.sqrt()) + self.tv * (right + down)  # type: ignore[union-attr]
        return value

    def step(self) -> None:
        """One iteration."""
        self.optimizer.zero_grad()
        (gradient,) = torch.autograd.grad(self.objective(), self.images)
        self.images.grad = gradient.sign()
        self.optimizer.step()
        with torch.no_grad():
            self.images.clamp_(0, 1)
