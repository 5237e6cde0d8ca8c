"""Residual networks with a stem for small images (He et al., CVPR 2016): those of "Inverting Gradients" and of LTI."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from gibench.victims.activations import Activation, activation_layer, architecture_name
from gibench.victims.base import Victim, seeded
from gibench.victims.lenet import redraw_uniform
from gibench.victims.normalization import CIFAR10_MEAN, CIFAR10_STD, IMAGENET_MEAN, IMAGENET_STD

Shortcut = Literal["projection", "padding"]


def resnet20_4(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    activation: Activation = "relu",
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Victim:
    """ResNet20-4 of "Inverting Gradients": three stages of three blocks, 64 to 256 channels, projection shortcuts.

    4,327,754 parameters at 10 classes. Convolutions are drawn from Kaiming's normal distribution over the fan-out.
    Another activation changes the name ("resnet20_4-silu"), not the weights.
    """
    return Victim(
        _seeded_resnet(seed, image_shape, num_classes, (3, 3, 3), 64, "projection", _draw_fan_out, activation),
        architecture=architecture_name("resnet20_4", activation, "relu"),
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"Kaiming normal over the fan-out, seed {seed}",
    )


def resnet18(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    activation: Activation = "relu",
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Victim:
    """ResNet-18 with the CIFAR stem (one 3x3 convolution, no pooling): 11,173,962 parameters at 10 classes.

    Initialized as `resnet20_4`. The one for ImageNet is `by_path("torchvision.models.resnet18")`. Another activation
    changes the name, not the weights.
    """
    return Victim(
        _seeded_resnet(seed, image_shape, num_classes, (2, 2, 2, 2), 64, "projection", _draw_fan_out, activation),
        architecture=architecture_name("resnet18", activation, "relu"),
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"Kaiming normal over the fan-out, seed {seed}",
    )


def resnet20(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    activation: Activation = "relu",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Victim:
    """CIFAR ResNet-20 with shortcuts that have no parameters ("option A"): 269,722 parameters at 10 classes.

    Its parameter names and, by default, its normalization (ImageNet's) are those of the weights that Y. Idelbayev
    publishes (akamaster/pytorch_resnet_cifar10), so that `load_weights` takes them as they are.
    Another activation changes the name ("resnet20-silu"), not the weights.
    """
    return Victim(
        _seeded_resnet(seed, image_shape, num_classes, (3, 3, 3), 16, "padding", _draw_fan_in, activation),
        architecture=architecture_name("resnet20", activation, "relu"),
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"Kaiming normal over the fan-in, seed {seed}",
    )


def lti_resnet20(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Victim:
    """`resnet20` as "Learning to Invert" (Wu et al., UAI 2023) attacks it.

    Raw pixels, and all parameters from U(-0.5, 0.5), those of BatchNorm too; its running statistics stay 0 and 1.
    """
    return Victim(
        _seeded_resnet(seed, image_shape, num_classes, (3, 3, 3), 16, "padding", redraw_uniform),
        architecture="lti_resnet20",
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"U(-0.5, 0.5), seed {seed}",
    )


def _seeded_resnet(
    seed: int,
    image_shape: tuple[int, int, int],
    num_classes: int,
    blocks: Sequence[int],
    width: int,
    shortcut: Shortcut,
    draw: Callable[[nn.Module], None],
    activation: Activation = "relu",
) -> nn.Module:
    """Build the network: `blocks` blocks per stage, `width` channels in the first, which double as the pixels halve."""

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(width),
            act1=activation_layer(activation),
        )
        before = width
        for stage, count in enumerate(blocks):
            after = width * 2**stage
            first = _Block(before, after, 1 if stage == 0 else 2, shortcut, activation)
            layers[f"layer{stage + 1}"] = nn.Sequential(
                first, *(_Block(after, after, 1, shortcut, activation) for _ in range(count - 1))
            )
            before = after
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["linear"] = nn.Linear(before, num_classes)
        network = nn.Sequential(layers)
        draw(network)
        return network

    return seeded(build, seed)


class _Block(nn.Module):
    """a(BN(conv(a(BN(conv(x))))) + shortcut(x)) with the activation a, ReLU by default; both convolutions 3x3."""

    def __init__(self, before: int, after: int, stride: int, shortcut: Shortcut, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.activation = activation_layer(activation)
        self.shortcut: nn.Module
        if before == after and stride == 1:
            self.shortcut = nn.Identity()
        elif shortcut == "projection":
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))
        else:
            self.shortcut = _Padding(after - before, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.activation(self.bn1(self.conv1(inputs)))
        outputs: Tensor = self.activation(self.bn2(self.conv2(features)) + self.shortcut(inputs))
        return outputs


class _Padding(nn.Module):
    """Take every `stride`-th pixel and add `channels` channels of zeros, half of them on either side."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        front = self.channels // 2
        return F.pad(inputs[..., :: self.stride, :: self.stride], (0, 0, 0, 0, front, self.channels - front))


def _draw_fan_out(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _draw_fan_in(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
