"""The victim: a network that takes pixels in [0, 1], normalizes them itself, and knows where its weights come from."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gibench.errors import ShapeError

Stage = Literal["initial", "trained", "converged"]


class Victim(nn.Module):
    """A classifier for images in [0, 1] with the facts that its fingerprint records (rule R13).

    forward: images (N, C, H, W) in [0, 1] -> logits (N, num_classes).

    Args:
        network: takes normalized images.
        architecture: its name in records.
        image_shape: (C, H, W).
        num_classes: number of logits.
        mean, std: per channel; the network sees (x - mean) / std.
        initialization: how the weights were drawn, or the file that they were loaded from.
        training_steps: SGD steps since then; None where the source does not say.
        stage: the threat model's word for it.
        test_accuracy: in [0, 1]; None where it was not measured.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: str,
        image_shape: Sequence[int],
        num_classes: int,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        initialization: str,
        training_steps: int | None = 0,
        stage: Stage = "initial",
        test_accuracy: float | None = None,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        if len(mean) not in (1, channels) or len(std) not in (1, channels):
            raise ShapeError(f"mean and std need 1 or {channels} entries; got {len(mean)} and {len(std)}.")
        self.network = network
        self.architecture = architecture
        self.image_shape = (channels, height, width)
        self.num_classes = num_classes
        self.initialization = initialization
        self.training_steps = training_steps
        self.stage: Stage = stage
        self.test_accuracy = test_accuracy
        self.register_buffer(
            "mean", torch.tensor(list(mean)).expand(channels).reshape(-1, 1, 1).clone(), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(list(std)).expand(channels).reshape(-1, 1, 1).clone(), persistent=False
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images in [0, 1]."""
        logits: Tensor = self.network(self.normalize(images))
        return logits

    def normalize(self, images: Tensor) -> Tensor:
        """Map pixels (..., C, H, W) in [0, 1] to what the network takes."""
        return (images - self.mean) / self.std

    def denormalize(self, inputs: Tensor) -> Tensor:
        """Undo `normalize`."""
        return inputs * self.std + self.mean

    def fingerprint(self) -> dict[str, str | int | float | None]:
        """What a record says of the victim: equal fingerprints mean equal models (rule R13)."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
            digest.update(array.view(torch.uint8).numpy().tobytes() if array.ndim else str(array.item()).encode())
        return {
            "architecture": self.architecture,
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
            "num_classes": self.num_classes,
            "weights_sha256": digest.hexdigest(),
            "initialization": self.initialization,
            "training_steps": self.training_steps,
            "stage": self.stage,
            "test_accuracy": self.test_accuracy,
            "mean": ", ".join(f"{value:.6g}" for value in self.mean.flatten().tolist()),
            "std": ", ".join(f"{value:.6g}" for value in self.std.flatten().tolist()),
            "dtype": str(next(self.parameters()).dtype).removeprefix("torch."),
        }


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Call `build` under its own random state, so that weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
