"""The training of an inverter on pairs of updates and images, step by step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.nn import functional as F

from gibench.errors import NonFiniteError
from gibench.metrics import psnr
from gibench.report.pictures import to_image
from gibench.runs.media import PICTURES
from inverters.assignment import assigned
from inverters.base import Inverter, Slots
from inverters.pairs import Pair


class InverterTraining(LightningModule):
    """Adam on the mean squared error of the best assignment; keeps the weights of the best epoch on the tune split.

    Where the network says how many images there are, the cross-entropy of that is added.

    Args:
        network: is trained in place.
        learning_rate: of Adam; 1e-4 in Learning to Invert, whose features are not standardized.
        milestones: fractions of the training after which the learning rate is divided by ten; None lowers it along a
            cosine to zero.
        patience: epochs without a better tune loss after which training stops; None never stops.
        existence: weight of the cross-entropy.
    """

    def __init__(
        self,
        network: Inverter,
        *,
        learning_rate: float = 1e-3,
        milestones: Sequence[float] | None = None,
        patience: int | None = 10,
        existence: float = 0.01,
    ) -> None:
        super().__init__()
        self.network = network
        self.learning_rate, self.patience, self.existence = learning_rate, patience, existence
        self.milestones = None if milestones is None else list(milestones)
        self.best: dict[str, Tensor] = {}
        self.quality: dict[str, float] = {}
        self.waited = 0
        self._told: list[tuple[int, float, Tensor, Tensor | None]] = []
        self._shown: list[Any] = []  # private at the left, reconstructed at the right

    def training_step(self, pair: Pair, _: int) -> Tensor:
        """The loss of one step's updates."""
        loss = self._loss(pair)[0]
        self.log("loss", loss, prog_bar=True)
        return loss

    def _loss(self, pair: Pair) -> tuple[Tensor, Slots, Tensor]:
        slots = self.network(pair.features)
        size = pair.images.shape[1]
        errors, chosen = assigned(slots.images[:, :size].float(), pair.images)
        loss = errors.mean()
        if slots.existence is not None:
            exists = (torch.arange(slots.existence.shape[1], device=loss.device) < size).to(slots.existence)
            exists = exists.expand_as(slots.existence)
            loss = loss + self.existence * F.binary_cross_entropy_with_logits(slots.existence, exists)
        return loss, slots, chosen

    def validation_step(self, pair: Pair, _: int) -> None:
        """Note loss, PSNR and the number of images named, for the updates of one step."""
        loss, slots, chosen = self._loss(pair)
        rows = torch.arange(len(chosen), device=chosen.device)[:, None]
        found = slots.images[rows, chosen].float().clamp(0, 1)
        values = psnr(found.flatten(0, 1), pair.images.flatten(0, 1))
        named = None if slots.existence is None else (slots.existence > 0).sum(1)
        exact = None if named is None else (named == pair.images.shape[1]).float().cpu()
        self._told.append((pair.images.shape[1], float(loss) * len(chosen), values.cpu(), exact))
        if not self._shown and isinstance(self.logger, WandbLogger):
            beside = torch.cat([pair.images.flatten(0, 1), found.flatten(0, 1)], dim=-1)
            self._shown = [to_image(each) for each in beside[:PICTURES].float().cpu()]

    def on_validation_epoch_end(self) -> None:
        """Keep the weights if they are the best so far, else count the epoch."""
        told, self._told = self._told, []
        updates = sum(len(values) // size for size, _, values, _ in told)
        loss = sum(loss for _, loss, _, _ in told) / updates
        if not math.isfinite(loss):
            raise NonFiniteError("the loss of the inverter is not finite; lower its learning_rate.")
        found = {"tune_loss": loss}
        for size in sorted({size for size, *_ in told}):
            found[f"tune_psnr_b{size}"] = float(torch.cat([values for own, _, values, _ in told if own == size]).mean())
            exact = [exact for own, _, _, exact in told if own == size and exact is not None]
            if exact:
                found[f"tune_count_b{size}"] = float(torch.cat(exact).mean())
        self.log_dict(found, prog_bar=True)
        shown, self._shown = self._shown, []
        if self.trainer.sanity_checking:
            return
        if isinstance(self.logger, WandbLogger):
            self.logger.log_image("tune/pictures", images=shown)
        if not self.quality or loss < self.quality["tune_loss"]:
            self.quality, self.waited = found | {"epoch": float(self.current_epoch)}, 0
            self.best = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        else:
            self.waited += 1
            self._stop()

    def _stop(self) -> None:
        if self.patience is not None and self.waited >= self.patience:
            self.trainer.should_stop = True

    def on_train_start(self) -> None:
        """Do not go on where the training had stopped before it was killed."""
        self._stop()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the best epoch with the state."""
        checkpoint["inverter"] = {"best": self.best, "quality": self.quality, "waited": self.waited}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the best epoch from the state."""
        kept = checkpoint["inverter"]
        self.best, self.quality, self.waited = kept["best"], kept["quality"], kept["waited"]

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's nested dictionary
        """Adam, its learning rate lowered by steps or along a cosine."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if self.milestones is None:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        else:
            marks = [int(steps * fraction) for fraction in self.milestones]
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, marks, gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
