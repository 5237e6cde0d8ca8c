"""Levenberg-Marquardt on one dense problem, written plainly: the whole Jacobian, and a direct solution."""

from collections.abc import Callable

import torch
from torch import Tensor


def jacobian(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """All of it, (M, n), by forward differentiation."""
    with torch.no_grad():
        found: Tensor = torch.func.jacfwd(function)(point.clone())
    return found


def levenberg_marquardt(
    function: Callable[[Tensor], Tensor], start: Tensor, *, steps: int, damping: float
) -> list[tuple[float, Tensor]]:
    """Value |r|^2 / 2 and point after each step, taken or not."""
    point, growth = start.clone(), 4.0
    value = float(function(point).square().sum() / 2)
    course = []
    for _ in range(steps):
        j, r = jacobian(function, point), function(point)
        matrix = j.T @ j
        damped = matrix + damping * matrix.diagonal().mean() * torch.eye(len(point), dtype=point.dtype)
        target = point + torch.linalg.solve(damped, -j.T @ r)
        step = target - point
        predicted = float(-(j.T @ r) @ step - (j @ step).square().sum() / 2)
        new = float(function(target).square().sum() / 2)
        if new < value:
            gain = (value - new) / predicted if predicted > 0 else 0.0
            damping *= 0.1 if gain > 0.75 else 2.0 if gain < 0.25 else 1.0
            point, value, growth = target, new, 4.0
        else:
            damping *= growth
            growth *= 2
        course.append((value, point.clone()))
    return course
