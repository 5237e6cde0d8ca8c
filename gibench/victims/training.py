"""Train a victim with SGD and keep its weights after chosen steps; a run that was killed continues exactly."""

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from gibench.defenses import Defense
from gibench.errors import ConfigurationError
from gibench.seeding import derive
from gibench.victims.base import Victim
from gibench.victims.checkpoints import KeepWeights
from gibench.victims.defended import check_defended, released_gradient
from gibench.victims.restart import EpochOrder, Precision, claim, fit_from, shift_and_mirror

IG_MILESTONES = (1 / 2.667, 1 / 1.6, 1 / 1.142)
"""When "Inverting Gradients" divides the learning rate by ten: near 3/8, 5/8 and 7/8 of the training."""


class VictimTraining(LightningModule):
    """Cross-entropy with SGD; logs `loss` and `accuracy` of the training batches.

    The defaults are those of "Inverting Gradients", which trains for 120 epochs of batches of 128 with augmentation.

    Args:
        victim: is trained in place.
        steps: SGD steps in all, of which milestones are fractions.
        seed: decides dropout and augmentation.
        learning_rate: of SGD.
        momentum: of SGD.
        nesterov: of SGD.
        weight_decay: of SGD.
        milestones: fractions of `steps` after which the learning rate is divided by ten.
        augment: shift each image by up to four pixels over black and mirror half of them.
        defense: each step is made with what one client that defends itself so sends of the batch, dropout off.
    """

    def __init__(
        self,
        victim: Victim,
        *,
        steps: int,
        seed: int = 0,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 5e-4,
        milestones: Sequence[float] = IG_MILESTONES,
        augment: bool = False,
        defense: Defense | None = None,
    ) -> None:
        super().__init__()
        self.victim = victim
        self.steps = steps
        self.seed = seed
        self.augment = augment
        self.defense = defense
        self.sgd: dict[str, Any] = {
            "lr": learning_rate,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
        }
        self.milestones = [int(steps * fraction) for fraction in milestones]

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return what is differentiated for images (N, C, H, W) in [0, 1] and labels (N,): the mean cross-entropy.

        Under a defense it is <g, weights> with the gradient g that the client sends, whose derivative is g itself.
        """
        images, labels = batch
        torch.manual_seed(derive("victim", self.seed, self.global_step))
        images = shift_and_mirror(images) if self.augment else images
        logits = self.victim(images)
        loss = F.cross_entropy(logits, labels)
        self.log_dict({"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}, prog_bar=True)
        if self.defense is None:
            return loss
        seed = derive("defense", self.seed, self.global_step)
        released = released_gradient(self.victim, self.defense, images, labels, seed=seed)
        return torch.stack([(weight * released[name]).sum() for name, weight in self.victim.named_parameters()]).sum()

    def on_train_batch_end(self, *_: object) -> None:
        """Stop after the last step, which may lie within an epoch."""
        self.trainer.should_stop = self.global_step >= self.steps

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's nested dictionary
        """SGD, its learning rate divided by ten at each milestone."""
        optimizer = torch.optim.SGD(self.victim.parameters(), **self.sgd)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, self.milestones, gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit_victim(
    *,
    victim: Victim,
    data: LightningDataModule,
    steps: int,
    checkpoints: list[int],
    out: str | Path,
    seed: int = 0,
    batch_size: int = 128,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 5e-4,
    milestones: Sequence[float] = IG_MILESTONES,
    augment: bool = False,
    defense: Defense | None = None,
    accelerator: str = "auto",
    precision: Precision = "32-true",
) -> list[Path]:
    """Train a copy of `victim` on the prior split of `data` and return the files of its weights, one per checkpoint.

    The same call again continues after a kill, from the end of the last epoch, or returns the files if they are all
    there. On a CPU they are, byte for byte, those of a run that was not killed; on a GPU, where all operations of the
    victim are deterministic. The test accuracy in their fingerprints is that on the score split. The folder also gets
    the settings (`training.json`) and a log (`log/version_*/metrics.csv`).

    Args:
        victim: with the weights to start from.
        data: a module of `gibench.data`, or any with their method `split`.
        steps: SGD steps in all.
        checkpoints: the steps after which to keep the weights; 0 is the start, and `steps` is always kept.
        out: folder for the files, one for each training.
        seed: decides the order of the images, dropout and augmentation.
        batch_size: images per step; the last batch of an epoch may be smaller.
        learning_rate: of SGD, as all that follow to `defense`: see `VictimTraining`.
        momentum: of SGD.
        nesterov: of SGD.
        weight_decay: of SGD.
        milestones: fractions of `steps` after which the learning rate is divided by ten.
        augment: shift each image by up to four pixels over black and mirror half of them.
        defense: what the clients do to their updates, each step one client's update; None trains on plain gradients.
        accelerator: Lightning's, e.g. "cpu" or "gpu".
        precision: Lightning's.

    Raises:
        ConfigurationError: a checkpoint lies outside 0..steps, the data do not fit the victim, the victim does not fit
            the defense or has BatchNorm under one, or the folder holds another training.
        StorageError: the folder cannot be written.
        WeightsError: the state from which a killed training continues is damaged.
    """
    kept = sorted({*checkpoints, steps})
    if kept[0] < 0 or kept[-1] > steps or steps < 1:
        raise ConfigurationError(f"checkpoints {kept} must lie in 0..{steps}, and steps be at least 1; change them.")
    if defense is not None:
        check_defended(victim, defense)
    training = VictimTraining(
        copy.deepcopy(victim),
        steps=steps,
        seed=seed,
        learning_rate=learning_rate,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        milestones=milestones,
        augment=augment,
        defense=defense,
    )
    images, labels, ids = split_for(data, "prior", victim)
    held_out, held_out_labels, held_out_ids = split_for(data, "score", victim)
    out = Path(out)
    settings = {
        "victim": victim.fingerprint(),
        "image_ids_sha256": hashlib.sha256("\n".join((*ids, *held_out_ids)).encode()).hexdigest(),
        "steps": steps,
        "checkpoints": kept,
        "batch_size": batch_size,
        "sgd": training.sgd,
        "milestones": training.milestones,
        "augment": augment,
        "seed": seed,
        "precision": precision,
        **({} if defense is None else {"defense": str(defense)}),
    }
    claim(out, json.dumps(settings, indent=2))
    state = out / "resume.ckpt"
    paths = {step: out / f"{victim.architecture}_step{step}.safetensors" for step in kept}
    if not all(path.is_file() for path in paths.values()):
        order = EpochOrder(len(images), batch_size, seed)
        fit_from(
            state,
            training,
            DataLoader(TensorDataset(images, labels), sampler=order, batch_size=None),
            epochs=-(-steps // len(order)),
            callbacks=[KeepWeights(training.victim, paths, held_out, held_out_labels, defense=defense)],
            accelerator=accelerator,
            precision=precision,
        )
    state.unlink(missing_ok=True)
    return list(paths.values())


class _Data(Protocol):
    """The one method that training needs of a data module."""

    def split(self, name: Literal["prior", "tune", "score"]) -> tuple[Tensor, Tensor, tuple[str, ...]]: ...


Images = tuple[Tensor, Tensor, tuple[str, ...]]


def split_for(data: LightningDataModule, name: Literal["prior", "tune", "score"], victim: Victim) -> Images:
    """Images, labels and ids of a split, for a victim.

    Raises:
        ConfigurationError: they do not fit it.
    """
    images, labels, ids = cast(_Data, data).split(name)
    if images.shape[1:] != victim.image_shape or int(labels.max()) >= victim.num_classes:
        raise ConfigurationError(
            f"{victim.architecture} takes images of {victim.image_shape} in {victim.num_classes} classes, the data are "
            f"{tuple(images.shape[1:])} in {int(labels.max()) + 1}; set the victim's image_shape and num_classes."
        )
    return images, labels, ids
