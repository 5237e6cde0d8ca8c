"""Densities of defended updates on plain numbers: -log p up to the constants that the likelihoods drop."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Pair = tuple[float, float]
"""A simulated and an observed entry."""


def entries(simulated: list[Tensor], observed: list[Tensor]) -> list[list[Pair]]:
    """The entries of each tensor."""
    return [
        list(zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
        for a, b in zip(simulated, observed, strict=True)
    ]


def summed(term: Callable[[float, float], float]) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """The sum of a term over all entries."""

    def formula(simulated: list[Tensor], observed: list[Tensor]) -> Tensor:
        total = math.fsum(term(*pair) for pairs in entries(simulated, observed) for pair in pairs)
        return torch.tensor(total, dtype=torch.float64)

    return formula


def absolute(scale: float, smoothing: float = 0.0) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """Laplace noise."""
    return summed(lambda a, b: (math.hypot(a - b, smoothing) - smoothing) / scale)


def mixture(energy: Callable[[float], float], pruned: float) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """Noise of density exp(-energy) on entries that may have been pruned."""
    return summed(lambda a, b: -math.log((1 - pruned) * math.exp(-energy(b - a)) + pruned * math.exp(-energy(b))))


def on_support(term: Callable[[float, float], float]) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """The sum over the entries that were sent."""
    return summed(lambda a, b: term(a, b) if b else 0.0)


def erased_below(weight: float, *, together: bool) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """Squared differences of what was sent, and by how much the rest is larger than the least that was sent."""

    def formula(simulated: list[Tensor], observed: list[Tensor]) -> Tensor:
        tensors, total = entries(simulated, observed), 0.0
        if together:
            tensors = [[pair for pairs in tensors for pair in pairs]]
        for pairs in tensors:
            least = min((abs(b) for _, b in pairs if b), default=math.inf)
            total += sum((a - b) ** 2 if b else weight * max(0.0, abs(a) - least) ** 2 for a, b in pairs)
        return torch.tensor(total, dtype=torch.float64)

    return formula


def rounded(levels: int, *, tail: float | None = None) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """Levels above 0 of each tensor; `tail` is where stochastic rounding gets its parabola, None rounds to nearest."""

    def term(distance: float) -> float:
        if tail is None:
            return max(0.0, distance - 0.5) ** 2
        if distance <= 1 - tail:
            return -math.log(1 - distance)
        beyond = (distance - 1 + tail) / tail
        return -math.log(tail) + beyond + beyond**2 / 2

    def formula(simulated: list[Tensor], observed: list[Tensor]) -> Tensor:
        total = 0.0
        for pairs in entries(simulated, observed):
            step = max(abs(b) for _, b in pairs) / levels
            total += sum(term(abs(a - b) / step) for a, b in pairs)
        return torch.tensor(total, dtype=torch.float64)

    return formula


def logistic(temperature: float) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """Signs, with the root mean square of each simulated tensor as the scale."""

    def formula(simulated: list[Tensor], observed: list[Tensor]) -> Tensor:
        total = 0.0
        for pairs in entries(simulated, observed):
            scale = temperature * math.sqrt(sum(a * a for a, _ in pairs) / len(pairs))
            total += sum(math.log1p(math.exp(-b * a / scale)) for a, b in pairs if b)
        return torch.tensor(total, dtype=torch.float64)

    return formula
