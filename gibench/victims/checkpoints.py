"""The weights that a training keeps after chosen steps, each with its accuracy on held-out images."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gibench.defenses import Defense
from gibench.victims.base import Victim
from gibench.victims.weights import save_weights


class KeepWeights(Callback):
    """Save a victim after the given steps of its training, each time with its accuracy on held-out images.

    Its fingerprint names the defense under which it was trained, after the initialization.

    Args:
        victim: the one that is trained.
        paths: step -> file; step 0 is the start.
        images: held out, (N, C, H, W) in [0, 1].
        labels: theirs, (N,).
        defense: of the clients whose updates train it.
    """

    def __init__(
        self, victim: Victim, paths: dict[int, Path], images: Tensor, labels: Tensor, *, defense: Defense | None = None
    ) -> None:
        self.victim = victim
        self.paths = paths
        self.images = images
        self.labels = labels
        self.steps_before = victim.training_steps
        under = "" if defense is None else f", trained under {defense}"
        self.initialization = victim.initialization.removesuffix(under) + under  # trained twice, it says so once

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the start."""
        self._keep(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Keep the weights after the step that has just been made."""
        self._keep(trainer.global_step)

    def _keep(self, step: int) -> None:
        if step not in self.paths:
            return
        if step > 0:
            self.victim.stage = "trained"
            self.victim.initialization = self.initialization
            self.victim.training_steps = None if self.steps_before is None else self.steps_before + step
        self.victim.test_accuracy = accuracy(self.victim, self.images, self.labels)
        save_weights(self.victim, self.paths[step])


def accuracy(victim: Victim, images: Tensor, labels: Tensor, *, batch_size: int = 500) -> float:
    """Return the share of images (N, C, H, W) in [0, 1] that the victim, in evaluation mode, gives their label (N,)."""
    device = next(victim.parameters()).device
    training = victim.training
    victim.eval()
    with torch.no_grad():
        correct: int = sum(
            int((victim(batch.to(device)).argmax(1).cpu() == truth).sum())
            for batch, truth in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True)
        )
    victim.train(training)
    return correct / len(labels)
