"""What the attacks of a run are held against: floors, limits, and the line-up of the attacked split."""

import time
from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gibench.data import ImageDataModule
from gibench.metrics import Floors, Limit, Lineup
from gibench.runs.configuration import digest
from gibench.runs.plan import Job
from gibench.types import Batch, Reconstruction


class Answers(NamedTuple):
    """What yardsticks make of one group, by name, and what each of them took."""

    batch: Batch
    found: dict[str, Reconstruction]
    seconds: float = 0.0


class Yardsticks:
    """Made once for each data set, and shared by the scenarios that use it.

    Args:
        left_out: what is not scored, of `gibench.runs.suite.METRICS`.
    """

    def __init__(self, left_out: Collection[str]) -> None:
        self.left_out = left_out
        self._floors: dict[str, Floors] = {}
        self._lineups: dict[str, Lineup] = {}

    def floors(self, data: ImageDataModule) -> Floors:
        """The floors of the prior split."""
        source = digest([data.name, data.split_hashes()])
        if source not in self._floors:
            prior = data.split("prior")
            self._floors[source] = Floors(prior.images, prior.labels, seed=0)
        return self._floors[source]

    def lineup(self, data: ImageDataModule) -> Lineup | None:
        """All images of the attacked split; None where the suite leaves them out."""
        if "identified" in self.left_out:
            return None
        source = digest([data.name, data.split_hashes(), data.split_for_attack])
        if source not in self._lineups:
            split = data.split(data.split_for_attack)
            self._lineups[source] = Lineup(split.images, split.ids)
        return self._lineups[source]

    def answers(self, job: Job) -> Iterator[Answers]:
        """Yield for each group that is left what content-free answers make of it (rule R5)."""
        floors = self.floors(job.data)
        labels_known = job.client.threat_model.labels in ("ordered", "counts")
        nearest = "nearest_image" not in self.left_out
        for private in job.data.predict_dataloader():
            batch = job.client.target(private)
            found = floors(batch, labels_known=labels_known, nearest=nearest)
            yield Answers(batch, {name: _answer(images) for name, images in found.items()})

    def limit(self, job: Job, name: str, limit: Limit, device: torch.device) -> Iterator[Answers]:
        """Yield for each group that is left the best that a prior holds for it, searched for with the truth."""
        for private in job.data.predict_dataloader():
            batch = job.client.target(private)
            began = time.perf_counter()
            images = limit(batch.images.to(device), batch.labels.to(device)).to(batch.images)
            yield Answers(batch, {name: _answer(images)}, time.perf_counter() - began)


def _answer(images: Tensor) -> Reconstruction:
    nothing = torch.zeros(len(images))
    return Reconstruction(images=images, labels=None, objective=nothing, gradient_evaluations=nothing.long())
