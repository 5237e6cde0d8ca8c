"""LLG+: LLG that measures on the attacker's own images (Wainakh et al., PoPETs 2022)."""

from typing import Any, NamedTuple, Protocol, cast

import torch
from lightning import LightningDataModule
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.labels.measured import Draw, MeasuringRule
from gibench.needs import Needs
from gibench.seeding import generator
from gibench.types import Observation


class _Splits(Protocol):
    """What is asked of a data set: its prior split, images (N, C, H, W) in [0, 1], labels (N,) and names."""

    image_shape: tuple[int, int, int]
    num_classes: int

    def split(self, name: str) -> tuple[Tensor, Tensor, Any]: ...


class _Drawn(NamedTuple):
    """What stands for all batches of `size` images: each image once, and which of them a batch has.

    images: (N, C, H, W). rows: (K, repetitions, size).
    """

    size: int
    images: Tensor
    rows: Tensor


class LLGPlus(MeasuringRule):
    """Count labels as `LLG` does, with the impact of an image and an offset of each class measured on real images.

    As `LLGStar`, with a batch of B different images of the class itself in the place of dummies, drawn anew for each
    repetition; where the data has fewer, they repeat. What is drawn depends on the class and the repetition alone, so
    that every update is measured alike. It is drawn once, and kept for the next updates of the same batch size. Labels
    are in ascending order.

    Args:
        auxiliary: the attacker's own data, of the victim's classes and image shape: any data set of `gibench.data`,
            by class path. Its prior split is used (60 % of `Arrays`, the train images of CIFAR-10), which shares no
            image with those that are attacked (rule R3).
        repetitions: batches for each class; 10 in the paper.

    Raises:
        ConfigurationError: when the data is no data set, or has other images or classes than the victim.
        RefusalError: when the victim has no linear head.
        ThreatModelError: when the threat model grants no other images (`prior_data`), or hides the batch size or the
            local steps.
    """

    needs = Needs(batch_size=("known",), local_steps=("known",), prior_data=("out_of_distribution", "in_distribution"))

    def __init__(self, *, auxiliary: LightningDataModule, repetitions: int = 10) -> None:
        super().__init__()
        if not callable(getattr(auxiliary, "split", None)):
            raise ConfigurationError(
                f"auxiliary is {type(auxiliary).__name__}, which has no prior split; name a data set of gibench.data."
            )
        if repetitions < 1:
            raise ConfigurationError(f"repetitions is {repetitions}; measure at least once.")
        self.auxiliary = cast(_Splits, auxiliary)
        self.repetitions = repetitions
        self._drawn: _Drawn | None = None

    def images(self, observation: Observation, size: int) -> Draw:
        """See `MeasuringRule`."""
        own = (self.auxiliary.image_shape, self.auxiliary.num_classes)
        if own != (observation.image_shape, observation.num_classes):
            raise ConfigurationError(
                f"the auxiliary data has images {own[0]} of {own[1]} classes, the victim takes "
                f"{observation.image_shape} of {observation.num_classes}; name data that fits."
            )
        if self._drawn is None or self._drawn.size != size:
            self._drawn = self._draw(size)
        _, images, rows = self._drawn
        return lambda label, repetition: images[rows[label, repetition]]

    def _draw(self, size: int) -> _Drawn:
        images, labels, _ = self.auxiliary.split("prior")  # a copy of all of it, of which few images are kept
        members = [(labels == label).nonzero()[:, 0] for label in range(self.auxiliary.num_classes)]
        if missing := [label for label, rows in enumerate(members) if not len(rows)]:
            raise ConfigurationError(f"the auxiliary data has no image of class {missing[0]}; name data that has.")

        def batch(label: int, repetition: int) -> Tensor:
            rows = members[label]
            order = torch.randperm(len(rows), generator=generator("LLG+", label, repetition))
            return rows[order[torch.arange(size) % len(rows)]]

        each = [
            torch.stack([batch(label, again) for again in range(self.repetitions)]) for label in range(len(members))
        ]
        used, rows = torch.stack(each).unique(return_inverse=True)
        return _Drawn(size, images[used], rows)
