"""Updates and objectives the slow way: one update after the other, plain autograd on the parameters, never `vmap`."""

import torch
from references import matching
from torch import Tensor

from gibench.likelihoods import Likelihood
from gibench.types import Update
from gibench.victims import Victim


def updates(victim: Victim, images: Tensor, labels: Tensor, *, scale: float = 1.0) -> Update:
    """Scaled gradients for images (U, B, C, H, W) and labels (U, B) or (U, B, K), name -> (U, *shape), with a graph."""
    names = [name for name, _ in victim.named_parameters()]
    rows = [matching.gradient(victim, x, y, create_graph=True) for x, y in zip(images, labels, strict=True)]
    return {name: torch.stack([scale * row[i] for row in rows]) for i, name in enumerate(names)}


def objective(likelihood: Likelihood, simulated: Update, observed: Update) -> Tensor:
    """Distances (R,) of R simulated updates, R / U in a row to each of U observed ones, by the formula of updates."""
    rows, clients = (len(next(iter(update.values()))) for update in (simulated, observed))
    values = []
    for row in range(rows):
        client = row * clients // rows
        mine = {name: value[row : row + 1] for name, value in simulated.items()}
        values.append(likelihood(mine, {name: value[client : client + 1] for name, value in observed.items()}))
    return torch.cat(values)
