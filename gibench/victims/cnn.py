"""The small network of "Bayesian Framework for Gradient Leakage" (Balunović et al., ICLR 2022), Table 2."""

import math
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from gibench.victims.base import Victim, seeded
from gibench.victims.normalization import CIFAR10_MEAN, CIFAR10_STD

_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of N(0, 1) cut off at ±2, by which LeCun's normal initialization in JAX corrects its own."""


def cnn(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Victim:
    """Two 3x3 convolutions (32, 64 channels) with ReLU and 2x2 average pooling, linear layers to 100 and the classes.

    430,102 parameters for (3, 32, 32) and 333,526 for MNIST's (1, 28, 28), at 10 classes. Kernels are drawn as Flax
    draws them: normal, cut off at two standard deviations, variance 1 / fan-in; biases are zero. Returns logits where
    the reference returns their log-softmax, which cross-entropy does not tell apart; flattens channels first.
    """
    channels, height, width = image_shape

    def build() -> nn.Module:
        network = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 32, 3, padding=1),
                act1=nn.ReLU(),
                pool1=nn.AvgPool2d(2),
                conv2=nn.Conv2d(32, 64, 3, padding=1),
                act2=nn.ReLU(),
                pool2=nn.AvgPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(64 * (height // 4) * (width // 4), 100),
                act3=nn.ReLU(),
                fc2=nn.Linear(100, num_classes),
            )
        )
        _draw_lecun_normal(network)
        return network

    return Victim(
        seeded(build, seed),
        architecture="cnn",
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"LeCun normal, seed {seed}",
    )


def _draw_lecun_normal(network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
        else:
            deviation = 1 / math.sqrt(parameter[0].numel()) / _TRUNCATED_STD
            nn.init.trunc_normal_(parameter, std=deviation, a=-2 * deviation, b=2 * deviation)
