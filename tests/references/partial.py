"""Partial gradient matching and feature matching with loops over dictionaries, one update at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Row = dict[str, Tensor]
"""One update, without the leading axis."""


def chosen(
    observed: Row, *, first: int | None, last: int | None, top: int | None, names: list[str] | None
) -> list[str]:
    order = list(observed)
    if names is not None:
        return names
    if top is not None:
        return sorted(order, key=lambda name: -float(observed[name].norm()))[:top]
    return [name for place, name in enumerate(order) if place < (first or 99) and place >= len(order) - (last or 99)]


def weight(observed: Row, name: str, kind: str) -> float:
    place, count = list(observed).index(name), len(observed)
    return {"equal": 1.0, "linear": 1 - place / count, "exponential": math.e**-place}[kind]


def squared(simulated: Row, observed: Row, names: list[str], kind: str) -> Tensor:
    """sum_i w_i |a_i - b_i|^2."""
    total = torch.zeros((), dtype=torch.float64)
    for name in names:
        for a, b in zip(simulated[name].flatten(), observed[name].flatten(), strict=True):
            total = total + weight(observed, name, kind) * (a - b) ** 2
    return total


def angle(simulated: Row, observed: Row, names: list[str], kind: str) -> Tensor:
    """1 - sum_i w_i <a_i, b_i> / (sqrt(sum_i w_i |a_i|^2) sqrt(sum_i w_i |b_i|^2))."""
    cross, own, other = 0.0, 0.0, 0.0
    for name in names:
        factor = weight(observed, name, kind)
        cross = cross + factor * (simulated[name] * observed[name]).sum()
        own = own + factor * (simulated[name] ** 2).sum()
        other = other + factor * (observed[name] ** 2).sum()
    return 1 - cross / (own**0.5 * other**0.5)  # type: ignore[operator, return-value]


DISTANCES: dict[str, Callable[[Row, Row, list[str], str], Tensor]] = {"gaussian": squared, "cosine": angle}


def last_inputs(victim: nn.Module, images: Tensor) -> Tensor:
    """What the last linear layer sees of images (N, C, H, W): (N, d), from a hook."""
    seen: list[Tensor] = []
    last = [layer for layer in victim.modules() if isinstance(layer, nn.Linear)][-1]
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    victim(images)
    handle.remove()
    return seen[0]
