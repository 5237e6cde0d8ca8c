"""A defended client: what it is scored against, and what it keeps to itself."""

import lightning
import pytest
import torch
from helpers import batch_of, small_victim
from torch import Tensor

from gibench import GradientInversion
from gibench.attacks import Attack
from gibench.clients import FedSGD
from gibench.data import Photographs
from gibench.defenses import ATS
from gibench.metrics import ImageQuality
from gibench.types import Observation, Reconstruction
from gibench.victims import lenet


class Answer(Attack):
    """An attack that answers with images that it was told beforehand."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, observation: Observation) -> Reconstruction:
        nothing = torch.zeros(len(self.images))
        return Reconstruction(images=self.images, labels=None, objective=nothing, gradient_evaluations=nothing.long())


@pytest.mark.parametrize("target", ["original", "transformed"])
def test_answers_are_held_against_the_target(target: str) -> None:
    data = Photographs(updates=3, together=3)
    (batch,) = data.predict_dataloader()
    client = FedSGD(lenet(), defense=ATS(target=target))  # type: ignore[arg-type]
    transformed = FedSGD(lenet(), defense=ATS(target="transformed")).target(batch).images
    assert not torch.equal(transformed, batch.images)
    answer = batch.images if target == "original" else transformed
    task = GradientInversion(client, Answer(answer), quality=ImageQuality(download=False))
    trainer = lightning.Trainer(inference_mode=False, logger=False, enable_checkpointing=False, accelerator="cpu")
    (scored,) = trainer.predict(task, data)
    assert all(record.psnr == 100 for record in scored.records)
    assert torch.equal(scored.private, answer)


def test_a_client_without_a_defense_is_scored_against_its_images() -> None:
    batch = batch_of(2, 1)
    assert FedSGD(small_victim()).target(batch) is batch
