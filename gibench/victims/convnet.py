"""ConvNet64, the "ConvNet" of "Inverting Gradients" (Geiping et al., NeurIPS 2020)."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from gibench.victims.activations import Activation, activation_layer, architecture_name
from gibench.victims.base import Victim, seeded
from gibench.victims.normalization import CIFAR10_MEAN, CIFAR10_STD


def convnet64(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    activation: Activation = "relu",
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Victim:
    """Eight 3x3 convolutions with bias, BatchNorm and ReLU, max pooling after the sixth and eighth, one linear layer.

    Channels 64, 128, 128, then five times 256. 2,904,970 parameters and 3,208 buffer values for (3, 32, 32) and 10
    classes; PyTorch's initialization. The reference's ordered dictionary gives its seventh and ninth convolution one
    name, so that eight exist.

    With another activation, which changes the name ("convnet64-silu") and not the weights, average pooling stands in
    place of max pooling, so that the network is smooth as a whole.

    Raises:
        ConfigurationError: for an unknown activation.
    """
    channels, height, width = image_shape
    channels_out = (64, 128, 128, 256, 256, 256, 256, 256)

    def build() -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before = channels
        for index, after in enumerate(channels_out):
            layers[f"conv{index}"] = nn.Conv2d(before, after, 3, padding=1)
            layers[f"bn{index}"] = nn.BatchNorm2d(after)
            layers[f"act{index}"] = activation_layer(activation)
            if index in (5, 7):
                layers[f"pool{index}"] = nn.MaxPool2d(3) if activation == "relu" else nn.AvgPool2d(3)
            before = after
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(256 * (height // 9) * (width // 9), num_classes)
        return nn.Sequential(layers)

    return Victim(
        seeded(build, seed),
        architecture=architecture_name("convnet64", activation, "relu"),
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"PyTorch default, seed {seed}",
    )
