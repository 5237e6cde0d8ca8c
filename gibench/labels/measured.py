"""LLG+ and LLG* measure on batches of their own what LLG guesses: the impact of an image, and each class's offset."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gibench.labels.base import LabelSource
from gibench.labels.head import ascending, last_linear, most_negative, row_sums, spend
from gibench.types import Observation

IMAGES_AT_ONCE = 256

Draw = Callable[[int, int], Tensor]
"""(class, repetition) -> images (B, C, H, W) in [0, 1] that stand for a batch of that class."""


class Measured(NamedTuple):
    """impact: m, scalar, negative. offset: s, (K,)."""

    impact: Tensor
    offset: Tensor


class MeasuringRule(LabelSource):
    """What LLG+ and LLG* share; they differ in the images, `images`, and in how often they are drawn, `repetitions`."""

    repetitions: int

    @abstractmethod
    def images(self, observation: Observation, size: int) -> Draw:
        """Return where a batch of `size` images of one class comes from."""

    def simulations(self, observation: Observation) -> int:
        """One for each class and repetition."""
        return observation.num_classes * self.repetitions

    def forward(self, observation: Observation) -> Tensor:
        """See `LabelSource`."""
        size = self.check(observation)
        layer = last_linear(observation)
        sums = row_sums(observation.update, layer)
        found = measure(observation, layer, self.images(observation, size), repetitions=self.repetitions)
        counts = spend(sums - found.offset, found.impact.expand(len(sums)), most_negative(sums, size), size)
        return ascending(counts)


@torch.no_grad()
def measure(observation: Observation, layer: str, draw: Draw, *, repetitions: int) -> Measured:
    r"""Simulate a batch of B images of each class i, and read the row sums S_j of the last weight.

    .. math:: m = \frac{1 + 1/K}{K B} \sum_i S_i^{(i)}, \qquad s_j = \frac{1}{K - 1} \sum_{i \ne j} S_j^{(i)}

    both averaged over the repetitions. The division by B is due because clients send the gradient of the mean loss.
    """
    classes, size = observation.num_classes, observation.known_batch_size()
    like = next(iter(observation.update.values()))
    sums = torch.zeros(classes, classes, dtype=torch.float64, device=like.device)
    at_once = max(1, IMAGES_AT_ONCE // size)
    for repetition in range(repetitions):
        for some in torch.arange(classes).split(at_once):
            images = torch.stack([draw(label, repetition) for label in some.tolist()]).to(like)
            labels = some.to(like.device)[:, None].expand(-1, images.shape[1]).contiguous()
            sums[some] += row_sums(observation.simulate(images, labels), layer) / repetitions
    own = sums.diagonal()
    return Measured((1 + 1 / classes) / size * own.mean(), (sums.sum(0) - own) / (classes - 1))
