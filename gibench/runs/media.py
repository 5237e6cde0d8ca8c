"""What Weights & Biases shows beyond means: a table of the images of each attack, and pictures beside private ones."""

from pathlib import Path
from typing import Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger

from gibench.errors import ConfigurationError
from gibench.report.pictures import to_image
from gibench.scoring import Scored
from gibench.types import Batch, Record

LoggerName = Literal["csv", "wandb", "wandb-offline"]


def make_logger(name: str, project: str, out: Path) -> Logger | None:
    """The logger of that name; None stands for CSV files in the run folder.

    Raises:
        ConfigurationError: there is none.
    """
    if name == "csv":
        return None
    if name in ("wandb", "wandb-offline"):
        return WandbLogger(project="gibench", name=project, save_dir=out, offline=name == "wandb-offline")
    raise ConfigurationError(f"--logger is {name!r}; choose csv, wandb or wandb-offline.")


PICTURES = 16
"""So many of each attack are logged: the first ones."""
_COLUMNS = (
    "image_id",
    "update_id",
    "position",
    "status",
    "psnr",
    "ssim",
    "mse",
    "lpips_alex",
    "lpips_vgg",
    "label",
    "label_inferred",
    "gradient_evaluations",
    "seconds",
)


class Media(Callback):
    """Log a table with a row for each image, and pictures: private at the left, reconstructed at the right.

    With another logger than Weights & Biases it does nothing.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.pictures: list[torch.Tensor] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Scored,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what is logged at the end."""
        if not isinstance(trainer.logger, WandbLogger):
            return
        self.records += outputs.records
        room = PICTURES - len(self.pictures)
        found, private = (images.flatten(0, 1)[:room].float().cpu() for images in (outputs.images, outputs.private))
        self.pictures += list(torch.cat([private, found], dim=-1))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the table and the pictures of the attack."""
        if not isinstance(trainer.logger, WandbLogger) or not self.records:
            return
        name = f"{self.records[0].scenario}/{self.records[0].attack}"
        rows = [[getattr(record, column) for column in _COLUMNS] for record in self.records]
        trainer.logger.log_table(f"{name}/images", columns=list(_COLUMNS), data=rows)
        shown = self.records[: len(self.pictures)]
        captions = [f"{record.image_id}, {record.psnr:.1f} dB" for record in shown]
        trainer.logger.log_image(
            f"{name}/pictures", images=[to_image(picture) for picture in self.pictures], caption=captions
        )
