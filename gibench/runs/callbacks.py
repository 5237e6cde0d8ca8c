"""What happens around each group of updates: records go to disk, a bar moves, one optimization is filmed."""

import signal
import threading
from contextlib import ExitStack

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from gibench.matching import match
from gibench.progress import Step, watching
from gibench.records import RecordFile, RunFolder, folder_name
from gibench.scoring import Scored
from gibench.types import Batch

FRAMES = 25


class RecordWriter(Callback):
    """Save the reconstructions of a group, then its records: what is recorded can be scored again (rule R19).

    Args:
        folder: of the run.
        file: where the records go.
        pictures: whether reconstructions are saved at all.
    """

    def __init__(self, folder: RunFolder, file: RecordFile, *, pictures: bool = True) -> None:
        self.folder = folder
        self.file = file
        self.pictures = pictures

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Scored,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write what `predict_step` returned, and log the group's means."""
        if self.pictures:
            save_pictures(self.folder, outputs)
        self.file.append(outputs.records)
        scores = [record.psnr for record in outputs.records]
        if trainer.logger:
            name = f"{outputs.records[0].scenario}/{outputs.records[0].attack}/psnr"
            trainer.logger.log_metrics({name: sum(scores) / len(scores)}, step=batch_idx * trainer.world_size)


def save_pictures(folder: RunFolder, scored: Scored) -> None:
    """Save the pictures of every update; before its records, so that what is recorded has them."""
    size, updates = scored.images.shape[1], zip(scored.images, scored.private, strict=True)
    for update, (images, private) in enumerate(updates):
        record = scored.records[update * size]
        tensors = {"images": images.float(), "private": private.float()}
        folder.save_tensors(tensors, "reconstructions", record.scenario, record.attack, record.update_id)


def csv_logger(folder: RunFolder, scenario: str, attack: str) -> CSVLogger:
    """Log each start of a run into a folder of its own: Lightning's logger empties the one it is given."""
    return CSVLogger(folder.path / "logs", name=folder_name(f"{scenario}-{attack}"))


class Termination(Callback):
    """Let SIGTERM stop a run at once, as Ctrl-C does: while predicting, Lightning only takes note of it."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler, which it has installed by now and removes at the end."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)


class ProgressBar(Callback):
    """One bar for the inner iterations of the current group, with the median objective and the time left."""

    def __init__(self, console: Console, title: str, groups: int) -> None:
        self.title = title
        self.groups = groups
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("objective {task.fields[objective]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.stack = ExitStack()
        self.task: TaskID | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        self.stack.enter_context(self.progress)
        self.stack.enter_context(watching(self.watch))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin the bar of the next group."""
        if self.task is not None:
            self.progress.remove_task(self.task)
        text = f"{self.title}, group {batch_idx + 1} of {self.groups}"
        self.task = self.progress.add_task(text, total=None, objective="-")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the bar."""
        self.stack.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Clear the bar, so that the error's line stands alone."""
        self.stack.close()

    def watch(self, step: Step) -> None:
        """Move the bar; the objective is read a hundred times at most, because reading it waits for the device."""
        if self.task is None or (step.done % max(1, step.total // 100) and step.done != step.total):
            return
        objective = f"{step.objective.nanmedian().item():.3g}"
        self.progress.update(self.task, completed=step.done, total=step.total, objective=objective)


class Animation(Callback):
    """Film the first private image of a scenario, about 25 frames, for the report.

    The order of the iterates in their batch is free; the last frame decides which of them is the image's.

    Args:
        folder: of the run.
        scenario, attack: what the film is filed under.
        first_update: of the scenario; the group that begins with it is filmed, and no other, so that a resumed run has
            the film of an unbroken one.
    """

    def __init__(self, folder: RunFolder, scenario: str, attack: str, *, first_update: str) -> None:
        self.folder = folder
        self.names = (scenario, attack)
        self.first_update = first_update
        self.frames: list[Tensor] = []
        self.steps: list[int] = []
        self.objective: list[float] = []
        self.done = False
        self.stack = ExitStack()

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the first group."""
        if batch.update_ids[0] == self.first_update:
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
        """Save the film."""
        self.stack.close()
        if batch.update_ids[0] != self.first_update or not self.frames:
            return
        frames, private = torch.stack(self.frames), outputs.private[:1].float().cpu()
        own = match(frames[-1:], private)[0, 0] if frames.shape[1:] == private.shape[1:] else 0
        tensors = {
            "frames": frames[:, own],
            "steps": torch.tensor(self.steps),
            "objective": torch.tensor(self.objective),
            "private": private[0, 0],
        }
        self.folder.save_tensors(tensors, "animation", *self.names)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop watching."""
        self.stack.close()

    def watch(self, step: Step) -> None:
        """Keep a frame where the search is a 25th further; only the first search is filmed."""
        due = step.done == 1 or step.done % max(1, step.total // FRAMES) == 0
        if not self.done and due:
            with torch.no_grad():
                self.frames.append(step.images()[0].clamp(0, 1).nan_to_num().float().cpu())
            self.steps.append(step.done)
            self.objective.append(float(step.objective[0].nan_to_num()))
        self.done |= step.done == step.total
