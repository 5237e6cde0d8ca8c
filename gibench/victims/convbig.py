"""ConvBig, on which "Bayesian Framework for Gradient Leakage" (Balunović et al., ICLR 2022) attacks Soteria."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from gibench.victims.base import Victim, seeded
from gibench.victims.normalization import CIFAR10_MEAN, CIFAR10_STD


def convbig(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Victim:
    """A 3x3 and a 1x1 convolution (32, 64 channels), each with 2x2 average pooling, and three linear layers.

    They lead to 2000, 1000 and the classes; ReLU between; PyTorch's initialization. 12,384,018 parameters for
    (3, 32, 32) and 10 classes. The 1x1 convolution pads by one pixel, as in the authors' code: it frames the map of
    16x16 with its bias, and 64 maps of 9x9 remain.
    """
    channels, height, width = image_shape

    def build() -> nn.Module:
        hidden = 64 * ((height // 2 + 2) // 2) * ((width // 2 + 2) // 2)
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 32, 3, padding=1),
                act1=nn.ReLU(),
                pool1=nn.AvgPool2d(2),
                conv2=nn.Conv2d(32, 64, 1, padding=1),
                act2=nn.ReLU(),
                pool2=nn.AvgPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(hidden, 2000),
                act3=nn.ReLU(),
                fc2=nn.Linear(2000, 1000),
                act4=nn.ReLU(),
                fc3=nn.Linear(1000, num_classes),
            )
        )

    return Victim(
        seeded(build, seed),
        architecture="convbig",
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"PyTorch default, seed {seed}",
    )
