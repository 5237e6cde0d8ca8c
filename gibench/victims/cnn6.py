"""The chains of "R-GAP: Recursive Gradient Attack on Privacy" (Zhu and Blaschko, ICLR 2021): CNN6, CNN6-d and FCN3."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gibench.errors import ConfigurationError
from gibench.victims.base import Victim, seeded

SLOPE = 0.2
"""Of LeakyReLU for negative inputs: each activation of these nets has an inverse."""


class BinaryLogits(nn.Module):
    """Turn one logit z (N, 1) into K logits (N, K): 0 for the first half of the classes, z for the second.

    Softmax cross-entropy on them is the logistic loss of "second half" against "first half", up to a constant: a class
    of the second half has the probability e^z / (K/2 (1 + e^z)) = sigma(z) / (K/2). For K = 2 the logits are [0, z].
    """

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        if num_classes < 2 or num_classes % 2:
            raise ConfigurationError(f"a binary head halves the classes; num_classes is {num_classes}: make it even.")
        self.num_classes = num_classes

    def forward(self, logit: Tensor) -> Tensor:
        """See the class."""
        half = self.num_classes // 2
        return torch.cat([torch.zeros_like(logit).expand(-1, half), logit.expand(-1, half)], dim=1)


def cnn6(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    deficient: bool = False,
    head: Literal["multiclass", "binary"] = "multiclass",
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Victim:
    """Six convolutions without bias (12, 36, 36, 36, 64, 128 channels), each with LeakyReLU(0.2), and one linear layer.

    For 32x32 pixels the maps have sides 17, 9, 9, 9, 5, 5, and the head sees 3200 features. 154,266 parameters for 10
    classes; 125,456 with the binary head. PyTorch's initialization.

    Args:
        seed: decides the weights, alone.
        num_classes: number of logits.
        image_shape: (C, H, W).
        deficient: give the second convolution 20 channels, so that its equations no longer determine its input: CNN6-d.
        head: "multiclass" is a linear layer with bias, as in breaching; "binary" the authors' one logit without bias,
            shown as `num_classes` logits by `BinaryLogits`.
        mean: per channel; 0 by default, because the authors' attack takes raw pixels.
        std: per channel; 1 by default.

    Raises:
        ConfigurationError: for a binary head over an odd number of classes.
    """
    channels, *sides = image_shape
    wide = 20 if deficient else 36
    maps = [(12, 4, 2, 2), (wide, 3, 2, 1), (36, 3, 1, 1), (36, 3, 1, 1), (64, 3, 2, 1), (128, 3, 1, 1)]

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before, height, width = channels, *sides
        for number, (after, kernel, stride, padding) in enumerate(maps, start=1):
            layers[f"conv{number}"] = nn.Conv2d(before, after, kernel, stride=stride, padding=padding, bias=False)
            layers[f"act{number}"] = nn.LeakyReLU(SLOPE)
            height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
            before = after
        layers["flatten"] = nn.Flatten()
        return nn.Sequential(layers | _head(before * height * width, num_classes, head))

    return Victim(
        seeded(build, seed),
        architecture=f"cnn6{'-d' if deficient else ''}{'-binary' if head == 'binary' else ''}",
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"PyTorch default, seed {seed}",
    )


def fcn3(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (1, 28, 28),
    head: Literal["multiclass", "binary"] = "binary",
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Victim:
    """Linear layers pixels -> 1000 -> 100 without bias, each with LeakyReLU(0.2), and the head of `cnn6`.

    884,100 parameters for MNIST's (1, 28, 28) with the binary head. The authors' code passes the logit through one more
    LeakyReLU, which its attack leaves out; we have none there. Args and errors as in `cnn6`.
    """

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        before = torch.Size(image_shape).numel()
        for number, after in enumerate((1000, 100), start=1):
            layers[f"fc{number}"] = nn.Linear(before, after, bias=False)
            layers[f"act{number}"] = nn.LeakyReLU(SLOPE)
            before = after
        return nn.Sequential(layers | _head(before, num_classes, head))

    return Victim(
        seeded(build, seed),
        architecture=f"fcn3{'-binary' if head == 'binary' else ''}",
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"PyTorch default, seed {seed}",
    )


def _head(features: int, num_classes: int, head: str) -> OrderedDict[str, nn.Module]:
    if head not in ("multiclass", "binary"):
        raise ConfigurationError(f"head is {head!r}; choose 'multiclass' or 'binary'.")
    if head == "multiclass":
        return OrderedDict(fc=nn.Linear(features, num_classes))
    return OrderedDict(fc=nn.Linear(features, 1, bias=False), logits=BinaryLogits(num_classes))
