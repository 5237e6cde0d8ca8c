"""Scoring the iterates of an attack while it searches: what it cannot do itself, because it does not see the truth."""

import math
import statistics
from contextlib import ExitStack

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from gibench.attacks import UndoTransformation
from gibench.inversion import GradientInversion
from gibench.matching import match, reorder
from gibench.metrics import psnr
from gibench.metrics.errors_in_pictures import bad_pixels, tv_ratio
from gibench.progress import Step, watching
from gibench.records import RunFolder
from gibench.report.traces import Point, trace_path, write_trace
from gibench.scoring import Scored
from gibench.types import Batch

POINTS = 30


class Tracer(Callback):
    """Score the iterates of the first group of a scenario at about 30 steps, evenly spaced by their logarithm.

    At each of them the reconstructions are matched anew (rule R4). Among restarts the trace takes the one with the
    least objective, likelihood and priors, at the current iterate; the attack may answer with another one, for it
    chooses in the end and by rules of its own. What is not finite scores as the floor (rule R7). Only the first search
    of the group is traced, and of it whole updates: where memory cuts the group into parts, the first part. The last
    point is what the attack answers; an attack that answers with something else than what it searched has no trace (see
    `answers_its_search`). The file is written at once and before the group's records, so that a run that is killed and
    continued has the trace of an unbroken one.

    Args:
        folder: of the run.
        scenario, attack: what the trace is filed under.
        first_update: of the scenario; the group that begins with it is traced.
    """

    def __init__(self, folder: RunFolder, scenario: str, attack: str, *, first_update: str) -> None:
        self.folder = folder
        self.names = (scenario, attack)
        self.first_update = first_update
        self.stack = ExitStack()
        self.points: list[Point] = []
        self.updates = 0
        self.last = 0
        self.done = False

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the first group."""
        if batch.update_ids[0] != self.first_update or not isinstance(pl_module, GradientInversion):
            return
        self.points = []
        if answers_its_search(pl_module.attack):
            client = pl_module.client
            self.private = client.target(batch.to(client.victim.mean.dtype)).images.cpu()
            self.fallback = pl_module.scorer.fallback.cpu()
            self.restarts = restarts(pl_module.attack)
            self.updates, self.last, self.done = 0, 0, False
            self.stack.enter_context(watching(self.watch))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Scored,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the answer and write the trace."""
        self.stack.close()
        if batch.update_ids[0] != self.first_update or not self.points:
            return
        answer = self._point(outputs.images[: self.updates].cpu(), None, step=self.last)
        write_trace([*self.points, answer], trace_path(self.folder.path, *self.names))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching."""
        self.stack.close()

    def watch(self, step: Step) -> None:
        """Score the iterates where they are due; only the first search is traced."""
        self.done |= step.done <= self.last
        if self.done:
            return
        self.last = step.done
        if step.done in due(step.total):
            with torch.no_grad():
                self._score(step)

    def _score(self, step: Step) -> None:
        images, objective = step.images().cpu(), step.objective.cpu().double()
        rows = min(self.restarts, len(images))
        self.updates = len(images) // rows
        if len(images) % rows or self.updates > len(self.private) or images.shape[1:] != self.private.shape[1:]:
            self.done = True  # it searches something else than the images of whole updates
            return
        values = objective.view(self.updates, rows)
        chosen = values.nan_to_num(nan=math.inf, posinf=math.inf).argmin(1)
        updates = torch.arange(self.updates)
        point = self._point(
            images.unflatten(0, (self.updates, rows))[updates, chosen], values[updates, chosen], step=step.done
        )
        self.points.append(point)

    def _point(self, images: Tensor, objective: Tensor | None, *, step: int) -> Point:
        """Score images (U, B, C, H, W) of the first updates in any order within their batches."""
        private = self.private[: len(images)].double()
        failed = ~images.isfinite().flatten(2).all(2)
        mended = torch.where(failed[..., None, None, None], self.fallback.to(private), images.to(private).clamp(0, 1))
        matched = reorder(mended, match(mended, private))
        ratios = [ratio for ratio in tv_ratio(matched, private).flatten().tolist() if math.isfinite(ratio)]
        value = math.inf if objective is None else objective.nanmedian().item()
        return Point(
            step=step,
            answer=objective is None,
            images=failed.numel(),
            psnr=psnr(matched.flatten(0, 1), private.flatten(0, 1)).mean().item(),
            bad_pixels=bad_pixels(matched, private).mean().item(),
            tv_ratio=statistics.median(ratios) if ratios else None,
            objective=value if math.isfinite(value) else None,
        )


def due(total: int) -> set[int]:
    """The steps of `total` at which to look: the first, the last, and those between at equal ratios, rounded."""
    return {round(total ** (place / (POINTS - 1))) for place in range(POINTS)}


def answers_its_search(attack: nn.Module) -> bool:
    """Whether the images that an attack searches are those that it answers; not where it undoes a transformation."""
    return not any(isinstance(part, UndoTransformation) for part in attack.modules())


def restarts(attack: nn.Module) -> int:
    """How many rows an attack searches for each update; wrappers search those of the attack that they hold."""
    while not hasattr(attack, "restarts") and isinstance(inner := getattr(attack, "attack", None), nn.Module):
        attack = inner
    return int(getattr(attack, "restarts", 1))
