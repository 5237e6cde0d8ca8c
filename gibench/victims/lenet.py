"""LeNet as in "Deep Leakage from Gradients" (Zhu, Liu and Han, NeurIPS 2019); other code calls it LeNetZhu."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from gibench.victims.base import Victim, seeded


def lenet(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    initialization: Literal["uniform", "default"] = "uniform",
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Victim:
    """Three 5x5 convolutions of 12 channels (strides 2, 2, 1) and one linear layer, with sigmoids between; no pooling.

    15,826 parameters for (3, 32, 32) and 10 classes, 85,036 for 100; 588 hidden units for MNIST's (1, 28, 28).

    Args:
        seed: decides the weights, alone.
        num_classes: number of logits.
        image_shape: (C, H, W).
        initialization: "uniform" draws all weights and biases from U(-0.5, 0.5), as DLG does; "default" is PyTorch's
            own, whose gradients are much smaller.
        mean: per channel; 0 by default, because DLG takes raw pixels and its L-BFGS diverges on normalized ones.
        std: per channel; 1 by default.
    """
    channels, height, width = image_shape

    def build() -> nn.Module:
        hidden = 12 * -(-height // 4) * -(-width // 4)  # two strides of 2, each rounding up
        network = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 12, 5, stride=2, padding=2),
                act1=nn.Sigmoid(),
                conv2=nn.Conv2d(12, 12, 5, stride=2, padding=2),
                act2=nn.Sigmoid(),
                conv3=nn.Conv2d(12, 12, 5, stride=1, padding=2),
                act3=nn.Sigmoid(),
                flatten=nn.Flatten(),
                fc=nn.Linear(hidden, num_classes),
            )
        )
        if initialization == "uniform":
            redraw_uniform(network)
        return network

    return Victim(
        seeded(build, seed),
        architecture="lenet",
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"{'U(-0.5, 0.5)' if initialization == 'uniform' else 'PyTorch default'}, seed {seed}",
    )


def redraw_uniform(network: nn.Module) -> None:
    """Draw every parameter from U(-0.5, 0.5), those of normalization layers too: the initialization of DLG and LTI."""
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
