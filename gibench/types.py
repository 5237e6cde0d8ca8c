"""The five records that flow through gibench, all frozen: Batch, ThreatModel, Observation, Reconstruction, Record.

    images -> Client -> Observation -> Attack -> Reconstruction -> matching and metrics -> Record

U is the number of independent updates that are handled together, B the number of private images behind each of them,
K the number of classes. U leads every tensor.
"""

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from gibench.errors import ImageRangeError, NonFiniteError, ShapeError, ThreatModelError
from gibench.precision import Parity

Update = dict[str, Tensor]
"""One tensor of shape (U, *parameter.shape) per parameter name of the victim."""

Simulate = Callable[..., Update]
"""(images (U, B, C, H, W), labels (U, B) or class probabilities (U, B, K)) -> the updates that they would cause.

What a defense draws at random, it takes as further arguments by name, (U, ...); see `gibench.defenses.Hypothesis`.
"""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Batch(_Frozen):
    """Private images of U clients, B images each: what the attack never sees.

    images: (U, B, C, H, W), floating point in [0, 1]. labels: (U, B), int64. image_ids: U tuples of B names.
    update_ids: U names, unique within a scenario; seeds and records are keyed by them.

    Raises:
        ShapeError, ImageRangeError, NonFiniteError: for tensors that break the lines above.
    """

    images: Tensor
    labels: Tensor
    image_ids: tuple[tuple[str, ...], ...]
    update_ids: tuple[str, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_images(self.images)
        updates, size = self.images.shape[:2]
        if self.labels.shape != (updates, size) or self.labels.dtype != torch.int64:
            raise ShapeError(
                f"labels have shape {tuple(self.labels.shape)} and type {self.labels.dtype}; "
                f"pass int64 labels of shape ({updates}, {size})."
            )
        if len(self.update_ids) != updates or [len(ids) for ids in self.image_ids] != [size] * updates:
            raise ShapeError(f"pass {updates} update_ids and {updates} tuples of {size} image_ids.")
        return self

    def to(self, target: torch.device | torch.dtype | str, **options: Any) -> "Batch":  # noqa: ANN401 - Lightning's options
        """Return the batch on a device (Lightning calls this), or with its images in another floating-point type."""
        images = self.images.to(target, **options)
        return self.model_copy(update={"images": images, "labels": self.labels.to(images.device, **options)})


class ThreatModel(_Frozen):
    """What the attacker is given, one flag each; it names the table in which a result stands.

    `victim` and `batch_norm` have no default on purpose (rule R12): they change the problem more than any attack does.

    labels: what is known of the private labels; "counts" is how often each class occurs, "set" which classes occur.
    batch_size: whether B is known; counted or ordered labels tell it.
    batch_norm: "absent" (the victim has none), "eval" (public running statistics), "private" (the batch's own
        statistics, kept by the client), "shared" (the batch's own statistics, sent with the update).
    victim: "initial" weights, "trained" for a recorded number of steps, or "converged".
    prior_data: what images from elsewhere the attacker may learn from.
    defense, defense_randomness: whether the defense with its parameters, and its realized randomness, are known.
    update: "gradient" (FedSGD) or "fedavg". local_steps: whether steps, local batch size and rate are known.
    server: "honest" (but curious) or "malicious" (chooses the weights).
    """

    victim: Literal["initial", "trained", "converged"]
    batch_norm: Literal["absent", "eval", "private", "shared"]
    labels: Literal["none", "counts", "set", "ordered"] = "ordered"
    batch_size: Literal["unknown", "known"] = "known"
    prior_data: Literal["none", "out_of_distribution", "in_distribution"] = "none"
    defense: Literal["none", "unknown", "known"] = "none"
    defense_randomness: Literal["unknown", "known"] = "unknown"
    update: Literal["gradient", "fedavg"] = "gradient"
    local_steps: Literal["unknown", "known"] = "known"
    server: Literal["honest", "malicious"] = "honest"


class Observation(_Frozen):
    """All that an attack gets; it has no field that holds private images (rule R1).

    update: what U clients sent, per parameter (U, *shape), as a gradient (FedAvg: server weights minus local weights).
    simulate: the client's own local-update function; differentiable in images and in soft labels.
    victim: the model as the server has it, with the BatchNorm regime of the client.
    image_shape: (C, H, W). num_classes: K. batch_size: B, or None where it is unknown.
    labels: (U, B) where they are known in order. label_counts: (U, K), int64, where their counts are known; where only
        the set is known, 1 for each class that occurs.
    defense: the client's defense (`gibench.defenses.Defense`) with its parameters, where it is known.
    randomness: what the defense drew for these updates, name -> (U, ...), where it is known; each defense says what.
    batch_statistics: where they are shared, BatchNorm layer name -> (U, 2, channels), mean and biased variance, of one
        pass of all B images at the server's weights; clients that train on parts of them normalize by each part's own.
    seeds: U seeds for the attacker's own random numbers.
    bytes_per_update: estimated memory to simulate one update and differentiate it with respect to its images; of one
        image where B is hidden.
    """

    update: Update
    simulate: Simulate
    victim: nn.Module
    threat_model: ThreatModel
    image_shape: tuple[int, int, int]
    num_classes: int
    batch_size: int | None
    labels: Tensor | None = None
    label_counts: Tensor | None = None
    batch_statistics: dict[str, Tensor] | None = None
    defense: nn.Module | None = None
    randomness: dict[str, Tensor] | None = None
    seeds: tuple[int, ...]
    bytes_per_update: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, tensor in self.update.items():
            if tensor.shape[0] != len(self.seeds):
                raise ShapeError(f"update of {name!r} leads with {tensor.shape[0]} rows for {len(self.seeds)} seeds.")
            if not all_finite(tensor):
                raise NonFiniteError(
                    f"the update of {name!r} holds NaN or infinity; lower the client's rate or repair the weights."
                )
        return self

    @property
    def updates(self) -> int:
        """The number U of updates that are attacked together."""
        return len(self.seeds)

    def select(self, rows: list[int]) -> "Observation":
        """Return the observation of the updates `rows`, in that order; rows may repeat (restarts are repeated rows)."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        return Observation(
            **{
                **dict(self),
                "update": {name: tensor[rows] for name, tensor in self.update.items()},
                "labels": pick(self.labels),
                "label_counts": pick(self.label_counts),
                "batch_statistics": self.batch_statistics
                and {name: tensor[rows] for name, tensor in self.batch_statistics.items()},
                "randomness": self.randomness and {name: tensor[rows] for name, tensor in self.randomness.items()},
                "seeds": tuple(self.seeds[row] for row in rows),
            }
        )

    def known_batch_size(self) -> int:
        """Return B, or raise ThreatModelError where the threat model hides it."""
        if self.batch_size is None:
            raise ThreatModelError("the attack needs the batch size; set threat_model.batch_size to 'known'.")
        return self.batch_size


class Reconstruction(_Frozen):
    """What an attack makes of U updates.

    images: (U, B, C, H, W) in [0, 1]; a failed one may hold NaN. labels: (U, B) that it inferred, or None.
    objective: (U,), the attacker's own figure of merit by which restarts were chosen (rule R2), lower is better.
    candidates: (R, U, B, C, H, W), all restarts, for the oracle gap; None where there is one.
    gradient_evaluations: (U,), int64, client updates simulated and differentiated for each update, restarts included.
    backend: how they were computed, in the engine's words; None for attacks that simulate no update.
    refused: for each update why it got no answer, or None where it did; None where all did. An attack that cannot serve
        the victim at all raises RefusalError instead.
    remarks: for each update what its search ran into, or None; None where there is nothing to say.
    labels_only: whether labels are all that the attack answers; its images then have no content.
    """

    images: Tensor
    labels: Tensor | None
    objective: Tensor
    gradient_evaluations: Tensor
    candidates: Tensor | None = None
    backend: str | None = None
    refused: tuple[str | None, ...] | None = None
    remarks: tuple[str | None, ...] | None = None
    labels_only: bool = False


class Record(_Frozen):
    """The score of one image under one attack: one line of `records.jsonl`.

    psnr (dB, range 1, at most 100), ssim, mse, lpips_*: None where a metric is not available; the manifest says why.
    status: "ok"; "diverged" when the reconstruction was not finite (it scores as the mean-image floor, rule R7);
        "refused" when the attack raised a GibenchError, or declined this update (same score; `reason` says why);
        "labels" when it answers labels alone, so that only those count.
    remark: what the search ran into, of an answer that is there.
    psnr_oracle: PSNR had the best restart been chosen by the true image; minus psnr it is the oracle gap.
    objective: the attacker's. gradient_evaluations, seconds: this image's share of its update's cost.
    label, label_inferred: the true one, and what the attack says after matching.
    psnr_mixture, psnr_class_mean, bad_pixels, tv_ratio, identified: what the errors look like, see
        `gibench.metrics.ErrorsInPictures`; None where one is not defined, of failed images, and in older records.
    backend: how the engine computed it. precision: Lightning's name, or tf32. parity: whether the precision gave fp32's
        scores on the panel of rule R14: "reference" (it is fp32 or better), "within" or "outside" the tolerance, or
        "untested" for this kind of victim and device.
    """

    scenario: str
    attack: str
    image_id: str
    update_id: str
    position: int
    status: Literal["ok", "diverged", "refused", "labels"]
    reason: str | None = None
    remark: str | None = None
    psnr: float
    ssim: float | None
    mse: float
    lpips_alex: float | None
    lpips_vgg: float | None
    psnr_oracle: float | None = None
    psnr_mixture: float | None = None
    psnr_class_mean: float | None = None
    bad_pixels: float | None = None
    tv_ratio: float | None = None
    identified: bool | None = None
    objective: float | None
    label: int
    label_inferred: int | None
    seed: int
    gradient_evaluations: float
    seconds: float
    backend: str | None = None
    precision: str = "32-true"
    parity: Parity = "reference"


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite. A finite sum says so in one reading; one that overflowed says nothing."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def check_images(images: Tensor) -> None:
    """Raise unless `images` are (U, B, C, H, W), floating point, finite and in [0, 1]."""
    if images.ndim != 5 or 0 in images.shape:
        raise ShapeError(f"images have shape {tuple(images.shape)}; pass (U, B, C, H, W), none of them zero.")
    if not images.is_floating_point():
        raise ImageRangeError(
            f"images are {images.dtype}; convert them to floating point in [0, 1], e.g. images / 255."
        )
    if not all_finite(images):
        raise NonFiniteError("images hold NaN or infinity; repair the data set.")
    low, high = images.min().item(), images.max().item()
    if low < 0 or high > 1:
        raise ImageRangeError(
            f"images span [{low:.3g}, {high:.3g}]; pass pixels in [0, 1]; the victim normalizes them itself."
        )
