"""What the label rules read: the update of the victim's last linear layer, and counts made of it."""

import torch
from torch import Tensor, nn

from gibench.errors import RefusalError
from gibench.types import Observation, Update


def last_linear(observation: Observation) -> str:
    """The name of the last linear layer, whose update has one row for each class.

    Raises:
        RefusalError: when the victim has none, or the client did not send it.
    """
    linear = [name for name, layer in observation.victim.named_modules() if isinstance(layer, nn.Linear)]
    weight = observation.update.get(f"{linear[-1]}.weight") if linear else None
    if weight is None or weight.shape[1] != observation.num_classes:
        raise RefusalError("the label rule reads the last linear layer, one row for each class; this victim has none.")
    name: str = linear[-1]
    return name


def weight_update(observation: Observation) -> Tensor:
    """The observed update of the last linear layer's weight, (U, K, features), float64.

    Raises:
        RefusalError: as `last_linear`.
    """
    return observation.update[f"{last_linear(observation)}.weight"].double()


def bias_update(observation: Observation) -> Tensor:
    """The observed update of the last linear layer's bias, (U, K), float64.

    Raises:
        RefusalError: as `last_linear`, and when the layer has no bias.
    """
    name = last_linear(observation)
    bias = observation.update.get(f"{name}.bias")
    if bias is None:
        raise RefusalError(
            f"the label rule reads the bias of the last linear layer, and {name} has none; take LLG, which reads the "
            "weight alone."
        )
    return bias.double()


def row_sums(update: Update, layer: str) -> Tensor:
    """S_c, the update of the weight of `layer` summed over the features, (U, K), float64."""
    return update[f"{layer}.weight"].double().sum(2)


def most_negative(scores: Tensor, size: int) -> Tensor:
    """(U, K) -> which classes have a negative score: True for the `size` lowest of them at most; ties to the first."""
    rank = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return (scores < 0) & (rank < size)


def spend(scores: Tensor, impact: Tensor, first: Tensor, size: int) -> Tensor:
    """Count the classes of U batches one image at a time, as LLG does.

    Every class in `first` is counted once. Then the class with the lowest score is counted, again and again, until
    there are `size` images. Whenever a class is counted, its score loses the impact of one image.

    Args:
        scores: (U, K).
        impact: (U,), by how much one image of a class lowers its score; negative.
        first: (U, K), bool, at most `size` in each row.
        size: B.

    Returns:
        (U, K), int64, rows that sum to B.
    """
    counts = first.long()
    scores = scores - impact[:, None] * counts
    while (left := counts.sum(1) < size).any():
        lowest = scores.argmin(1, keepdim=True)
        counts.scatter_add_(1, lowest, left[:, None].long())
        scores = scores.scatter_add(1, lowest, -impact[:, None])
    return counts


def ascending(counts: Tensor) -> Tensor:
    """Write counts (U, K) with equal sums B out as labels (U, B), int64, in ascending order."""
    classes = torch.arange(counts.shape[1], device=counts.device)
    return torch.stack([classes.repeat_interleave(row) for row in counts])
