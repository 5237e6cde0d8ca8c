"""Priors the slow way: loops over updates, images and pixels, plain hooks, every permutation."""

from itertools import combinations, permutations

import numpy as np
import torch
from torch import Tensor, nn

from gibench.victims import Victim


def batch_norm_term(victim: Victim, images: Tensor, known: list[Tensor], first: float) -> Tensor:
    """DeepInversion's term of one batch (B, C, H, W); known: of each layer, mean and variance (2, channels)."""
    seen: list[Tensor] = []
    layers = [layer for layer in victim.modules() if isinstance(layer, nn.BatchNorm2d)]
    handles = [layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0])) for layer in layers]
    victim(images)
    for handle in handles:
        handle.remove()
    total = torch.zeros((), dtype=images.dtype)
    for index, (inputs, (mean, variance)) in enumerate(zip(seen, known, strict=True)):
        means, variances = [], []
        for channel in range(inputs.shape[1]):
            values = inputs[:, channel].flatten()
            means.append(values.sum() / len(values))
            variances.append(((values - means[-1]) ** 2).sum() / len(values))
        distance = ((torch.stack(variances) - variance) ** 2).sum().sqrt()
        distance = distance + ((torch.stack(means) - mean) ** 2).sum().sqrt()
        total = total + (first if index == 0 else 1) * distance
    return total


def opponents(image: np.ndarray) -> np.ndarray:
    """(3, H, W) -> (6, H, W): the channels, then each less each later one."""
    return np.stack([*image, *(image[one] - image[other] for one, other in combinations(range(3), 2))])


def consensus(candidates: np.ndarray, labels: list[int]) -> np.ndarray:
    """What each of S restarts (S, B, ...) is pulled to: the mean over restarts in the order of the first."""
    size = len(labels)
    orders = []
    for restart in candidates:
        allowed = [
            order for order in permutations(range(size)) if all(labels[order[b]] == labels[b] for b in range(size))
        ]
        costs = [sum(((restart[order[b]] - candidates[0][b]) ** 2).sum() for b in range(size)) for order in allowed]
        orders.append(allowed[int(np.argmin(costs))])
    targets = np.zeros_like(candidates)
    for b in range(size):
        mean = sum(candidates[s][orders[s][b]] for s in range(len(candidates))) / len(candidates)
        for s in range(len(candidates)):
            targets[s][orders[s][b]] = mean
    return targets
