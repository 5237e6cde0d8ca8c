"""Scoring: matching once, failures as rows, refusals as rows, the oracle apart."""

import pytest
import torch
from helpers import batch_of, small_victim
from lightning import Trainer

from gibench import GradientInversion
from gibench.attacks import Attack, inverting_gradients
from gibench.clients import FedSGD
from gibench.errors import ConfigurationError, RefusalError, ThreatModelError
from gibench.metrics import ErrorsInPictures, ImageQuality
from gibench.scoring import Scored, Scorer
from gibench.types import Batch, Observation, Reconstruction, ThreatModel

QUALITY = ImageQuality(lpips=())


def scorer(fallback: float = 0.5) -> Scorer:
    return Scorer(scenario="s", quality=QUALITY, fallback=torch.full((3, 8, 8), fallback))


def answer(images: torch.Tensor, **changes: object) -> Reconstruction:
    rows = len(images)
    plain = {"labels": None, "objective": torch.zeros(rows), "gradient_evaluations": torch.full((rows,), 6)}
    return Reconstruction(images=images, **{**plain, **changes})  # type: ignore[arg-type]


def test_a_permuted_answer_scores_as_the_answer_itself() -> None:
    """R4 and R9: the order inside a batch does not matter, and labels follow their images."""
    batch = batch_of(3, 4)
    noisy = (batch.images + 0.02 * torch.randn(batch.images.shape)).clamp(0, 1)
    order = torch.tensor([2, 0, 3, 1])
    straight = scorer()("a", answer(noisy, labels=batch.labels), batch, seconds=1.2)
    shuffled = scorer()("a", answer(noisy[:, order], labels=batch.labels[:, order]), batch, seconds=1.2)
    assert straight.records == shuffled.records
    assert torch.equal(straight.images, shuffled.images)
    assert [record.label_inferred for record in straight.records] == batch.labels.flatten().tolist()
    assert sum(record.seconds for record in straight.records) == pytest.approx(1.2)
    assert sum(record.gradient_evaluations for record in straight.records) == pytest.approx(18)


def test_an_exact_answer_is_capped_and_perfect() -> None:
    batch = batch_of(1, 2)
    for record in scorer()("a", answer(batch.images), batch, seconds=0).records:
        assert record.psnr == 100
        assert record.ssim == pytest.approx(1)
        assert record.mse == 0


def test_a_diverged_image_is_a_row_that_scores_as_the_floor() -> None:
    """R7: only the image that failed, and what stands for it is the fallback."""
    batch = batch_of(2, 2)
    images = batch.images.clone()
    images[1, 0, 0, 0, 0] = torch.nan
    objective = torch.tensor([0.5, torch.inf])
    scored = scorer(0.25)("a", answer(images, objective=objective), batch, seconds=0)
    assert [record.status for record in scored.records] == ["ok", "ok", "diverged", "ok"]
    failed = scored.records[2]
    assert failed.mse == pytest.approx((batch.images[1, 0] - 0.25).square().mean().item(), rel=1e-6)
    assert failed.objective is None
    assert scored.records[0].objective == 0.5


def test_an_update_that_was_declined_says_why_and_the_others_count() -> None:
    batch = batch_of(2, 2)
    images = batch.images.clone()
    images[1] = torch.nan
    declined = answer(images, labels=batch.labels, refused=(None, "too much noise."))
    records = scorer(0.25)("a", declined, batch, seconds=0).records
    assert [(record.status, record.reason) for record in records] == 2 * [("ok", None)] + 2 * [
        ("refused", "too much noise.")
    ]
    assert [record.label_inferred for record in records] == [*batch.labels[0].tolist(), None, None]
    assert records[3].mse == pytest.approx((batch.images[1, 1] - 0.25).square().mean().item(), rel=1e-6)


def test_images_that_were_not_found_because_the_batch_size_is_hidden_have_failed() -> None:
    batch = batch_of(2, 3)
    found = answer(batch.images[:, 1:], labels=batch.labels[:, 1:])
    records = scorer()("a", found, batch, seconds=0).records
    assert [record.status for record in records] == 2 * ["diverged", "ok", "ok"]
    assert [record.psnr for record in records[1:3]] == [100, 100]
    assert [record.label_inferred for record in records[:3]] == [None, *batch.labels[0, 1:].tolist()]


def test_the_oracle_is_reported_beside_the_choice() -> None:
    """R2: the attacker chose the first restart; the truth would have chosen the second."""
    batch = batch_of(1, 2)
    worse, better = torch.full_like(batch.images, 0.5), batch.images
    scored = scorer()("a", answer(worse, candidates=torch.stack([worse, better])), batch, seconds=0)
    for record in scored.records:
        assert record.psnr < 30
        assert record.psnr_oracle == 100
    assert scorer()("a", answer(worse), batch, seconds=0).records[0].psnr_oracle is None


def test_what_the_errors_look_like_is_recorded_of_matched_images_that_did_not_fail() -> None:
    batch = batch_of(2, 2)
    errors = ErrorsInPictures(class_means=batch.images[0, :1].expand(10, -1, -1, -1))
    images = batch.images.flip(1).clone()  # in the other order
    images[1, 0] = torch.nan  # which is the second image's
    looking = Scorer(scenario="s", quality=QUALITY, fallback=torch.full((3, 8, 8), 0.5), errors=errors)
    first, second, third, failed = looking("a", answer(images), batch, seconds=0).records
    for record in (first, second, third):
        assert record.bad_pixels == 0
        assert record.tv_ratio == pytest.approx(1)
        assert record.psnr_mixture is not None
        assert record.psnr_mixture < 100
    assert (first.psnr_class_mean, second.psnr_class_mean == 100) == (100, False)
    assert failed.status == "diverged"
    assert (failed.psnr_mixture, failed.psnr_class_mean, failed.bad_pixels, failed.tv_ratio) == (None,) * 4
    assert scorer()("floor: mean image", answer(batch.images), batch, seconds=0).records[0].bad_pixels is None


class Refusing(Attack):
    """Cannot serve anything."""

    def forward(self, observation: Observation) -> Reconstruction:
        raise RefusalError("this victim has no door.")


def predict(task: GradientInversion, batch: Batch) -> list[Scored]:
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    trainer = Trainer(
        inference_mode=False, logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False
    )
    found = trainer.predict(task, loader)
    assert found
    return found  # type: ignore[return-value]


def test_a_refusal_is_a_row_for_every_image() -> None:
    (scored,) = predict(GradientInversion(FedSGD(small_victim()), Refusing(), quality=QUALITY), batch_of(2, 2))
    assert len(scored.records) == 4
    assert {(record.status, record.reason) for record in scored.records} == {("refused", "this victim has no door.")}


def test_the_main_job_through_lightning_leaves_the_truth_alone() -> None:
    batch = batch_of(3, 1)
    private = batch.images.clone()
    task = GradientInversion(FedSGD(small_victim()), inverting_gradients(steps=50), quality=QUALITY, name="ig")
    (scored,) = predict(task, batch)
    assert torch.equal(batch.images, private)
    assert [record.image_id for record in scored.records] == ["test/0/0", "test/1/0", "test/2/0"]
    assert {record.attack for record in scored.records} == {"ig"}
    assert all(record.seconds > 0 for record in scored.records)


def test_a_trainer_in_inference_mode_is_refused() -> None:
    task = GradientInversion(FedSGD(small_victim()), inverting_gradients(steps=1), quality=QUALITY)
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    with pytest.raises(ConfigurationError, match="inference_mode=False"):
        trainer.predict(task, torch.utils.data.DataLoader([batch_of(2, 1)], batch_size=None))


def test_an_attack_that_needs_more_than_is_granted_fails_at_construction() -> None:
    hidden = ThreatModel(victim="initial", batch_norm="absent", labels="none")
    with pytest.raises(ThreatModelError, match="labels"):
        GradientInversion(FedSGD(small_victim(), threat_model=hidden), inverting_gradients(), quality=QUALITY)
