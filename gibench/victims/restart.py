"""What makes a killed training continue exactly: random numbers that follow from counters, and a state saved whole."""

import io
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from gibench.errors import ConfigurationError, WeightsError
from gibench.seeding import generator
from gibench.storage import write_atomically

Precision = Literal["32-true", "bf16-mixed"]


class EpochOrder(Sampler[Tensor]):
    """Batches of indices: one permutation per epoch, which depends on the seed and the number of the epoch alone."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch, after a restart too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        # A generator function, because Lightning asks for the iterator before it sets the epoch.
        order = torch.randperm(self.size, generator=generator("order", self.seed, self.epoch))
        yield from torch.split(order, self.batch_size)


def claim(folder: Path, settings: str) -> None:
    """Note the settings of a training in its folder.

    Raises:
        ConfigurationError: the folder holds a training with others.
    """
    noted = folder / "training.json"
    if not noted.exists():
        write_atomically(settings.encode(), noted)
    elif noted.read_text() != settings:
        raise ConfigurationError(f"{folder} holds a training with other settings ({noted}); choose another folder.")


def shift_and_mirror(images: Tensor) -> Tensor:
    """Shift each of the images (N, C, H, W) by -4..4 pixels in both directions over black, and mirror half of them."""
    count, _, height, width = images.shape
    shifts = torch.randint(0, 9, (2, count, 1))
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(1), columns)
    padded = F.pad(images, (4, 4, 4, 4)).movedim(1, -1)
    chosen = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return chosen.movedim(-1, 1).contiguous()


def fit_from(
    state: Path,
    module: LightningModule,
    loader: DataLoader[Any] | LightningDataModule,
    *,
    epochs: int,
    callbacks: list[Callback],
    accelerator: str,
    precision: Precision,
    logger: Logger | None = None,
) -> None:
    """Train for `epochs` epochs in all, from `state` where that exists; it is replaced after each epoch.

    Logs go to `logger`, or as CSV files to the folder `log` beside `state`. The global random state on the CPU is left
    as it was.
    """
    with torch.random.fork_rng(devices=[]), _deterministic_convolutions(), _without_advertisements():
        # Not max_steps: with it Lightning takes a resumed epoch for unfinished, and repeats a step.
        trainer = Trainer(
            max_epochs=epochs,
            accelerator=accelerator,
            devices=1,
            precision=precision,
            callbacks=[
                *callbacks,
                ModelCheckpoint(state.parent, state.stem, save_on_train_epoch_end=True, enable_version_counter=False),
                RichProgressBar(refresh_rate=20),
            ],
            logger=logger or CSVLogger(state.parent, name="log"),
            plugins=[_AtomicCheckpoints()],
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, loader, ckpt_path=state if state.is_file() else None)


class _AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints that are there whole or not at all, and that hold no code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        # Lightning's own writer goes through the temporary folder: a move to another disk is not atomic.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(buffer.getvalue(), Path(path))

    def load_checkpoint(self, path: str | Path, *_: object, **__: object) -> dict[str, Any]:
        """Read tensors and plain values to the CPU; a file that would run code is refused."""
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise WeightsError(f"{path} is no complete state of a training; delete it to start again.") from error
        return state


@contextmanager
def _deterministic_convolutions() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@contextmanager
def _without_advertisements() -> Iterator[None]:
    """Lightning logs tips on other products, at the level of information."""
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
