"""Scoring: from a reconstruction and the private images to one record per image."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gibench.matching import match, reorder
from gibench.metrics import ErrorsInPictures, ImageQuality, psnr
from gibench.precision import Parity
from gibench.seeding import attacker_seed
from gibench.types import Batch, Reconstruction, Record

UNLABELED = -1
Status = Literal["ok", "diverged", "refused", "labels"]


class Scored(NamedTuple):
    """The records of U updates, U * B of them in order, and the pictures behind them, both (U, B, C, H, W)."""

    records: list[Record]
    images: Tensor
    private: Tensor


class Scorer:
    """Match, measure and record, for attacks, floors and controls alike.

    Args:
        scenario: its name in the records.
        quality: the metrics.
        fallback: (C, H, W), the mean image of the prior split: a failed reconstruction scores as this one (rule R7).
        seed: of the scenario; the records carry the attacker's seed that was derived from it.
        errors: what the errors look like is recorded of attacks; None does without, as for floors.
    """

    def __init__(
        self,
        *,
        scenario: str,
        quality: ImageQuality,
        fallback: Tensor,
        seed: int = 0,
        errors: ErrorsInPictures | None = None,
    ) -> None:
        self.scenario = scenario
        self.quality = quality
        self.fallback = fallback
        self.seed = seed
        self.errors = errors
        self.precision: tuple[str, Parity] = ("32-true", "reference")
        """Of the attack, and what the panel of rule R14 says of it."""

    @torch.no_grad()
    def __call__(
        self, attack: str, found: Reconstruction, batch: Batch, *, seconds: float, refusal: str | None = None
    ) -> Scored:
        """Score what `attack` found in `seconds`; `refusal` says why it found nothing at all.

        Where the batch size is hidden and fewer images were found than there are, the others count as failed; where
        more were found, all do, because choosing among them would need the truth.
        """
        private = batch.images
        if found.images.shape[1] > private.shape[1]:
            few, many = private.shape[1], found.images.shape[1]
            return self.refused(attack, f"it answers {many} images for {few}, which no assignment can score.", batch)
        answer = _fill(found.images, private.shape[1], torch.nan)
        failed = ~answer.isfinite().flatten(2).all(2)
        images = self._mend(answer, failed).to(private)
        permutation = match(images, private)
        images, failed = reorder(images, permutation), reorder(failed, permutation)
        labels = None
        if found.labels is not None:
            labels = reorder(_fill(found.labels, private.shape[1], UNLABELED), permutation).cpu()
        values = self.quality(images.flatten(0, 1), private.flatten(0, 1))
        scores = {name: [None] * failed.numel() if value is None else value.tolist() for name, value in values.items()}
        oracle = self._oracle(found.candidates, private)
        looks = self.errors(images, private, batch.labels, batch.image_ids)._asdict() if self.errors else {}
        reasons = found.refused or (refusal,) * len(private)
        records, size = [], private.shape[1]
        for row in range(failed.numel()):
            update, position = divmod(row, size)
            reason = reasons[update]
            named = None if labels is None else int(labels[update, position])
            objective = float(found.objective[update])
            status: Status = "labels" if found.labels_only else "diverged" if failed[update, position] else "ok"
            records.append(
                Record(
                    scenario=self.scenario,
                    attack=attack,
                    image_id=batch.image_ids[update][position],
                    update_id=batch.update_ids[update],
                    position=position,
                    status="refused" if reason else status,
                    reason=reason,
                    remark=found.remarks[update] if found.remarks else None,
                    **{name: column[row] for name, column in scores.items()},
                    psnr_oracle=None if oracle is None else oracle[row],
                    **({} if failed[update, position] else {name: column[row] for name, column in looks.items()}),
                    objective=objective if math.isfinite(objective) else None,
                    label=int(batch.labels[update, position]),
                    label_inferred=None if named in (None, UNLABELED) or reason else named,
                    seed=attacker_seed(self.seed, batch.update_ids[update]),
                    gradient_evaluations=float(found.gradient_evaluations[update]) / size,
                    seconds=seconds / failed.numel(),
                    backend=found.backend,
                    precision=self.precision[0],
                    parity=self.precision[1],
                )
            )
        return Scored(records, images, private)

    def refused(self, attack: str, reason: str, batch: Batch) -> Scored:
        """Record that the attack refused: its rows score as the floor and are never dropped (rule R7)."""
        updates = len(batch.images)
        nothing = Reconstruction(
            images=torch.full_like(batch.images, torch.nan),
            labels=None,
            objective=torch.full((updates,), torch.nan),
            gradient_evaluations=torch.zeros(updates, dtype=torch.int64),
        )
        return self(attack, nothing, batch, seconds=0.0, refusal=reason)

    def _mend(self, images: Tensor, failed: Tensor) -> Tensor:
        return torch.where(failed[..., None, None, None], self.fallback.to(images), images)

    def _oracle(self, candidates: Tensor | None, private: Tensor) -> list[float] | None:
        """PSNR of each image in the restart with the best mean PSNR of the update: what choosing by the truth gives."""
        if candidates is None:
            return None
        restarts = []
        for images in (_fill(each, private.shape[1], torch.nan) for each in candidates):
            mended = self._mend(images, ~images.isfinite().flatten(2).all(2)).to(private)
            matched = reorder(mended, match(mended, private))
            restarts.append(psnr(matched.flatten(0, 1), private.flatten(0, 1)).view(private.shape[:2]))
        values = torch.stack(restarts)
        best = values.mean(2).argmax(0)
        oracle: list[float] = values[best, torch.arange(len(best), device=best.device)].flatten().tolist()
        return oracle


def _fill(values: Tensor, size: int, filling: float) -> Tensor:
    """Fill (U, B', ...) up to (U, size, ...)."""
    updates, missing = len(values), size - values.shape[1]
    if missing <= 0:
        return values
    return torch.cat([values, values.new_full((updates, missing, *values.shape[2:]), filling)], 1)
