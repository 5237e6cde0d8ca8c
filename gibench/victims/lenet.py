"""LeNet as in "Deep Leakage from Gradients" (Zhu, Liu and Han, NeurIPS 2019); other code calls it LeNetZhu."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from gibench.victims.activations import Activation, activation_layer, architecture_name
from gibench.victims.base import Victim, seeded


def lenet(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    convolutions: Literal[3, 4] = 3,
    initialization: Literal["uniform", "default"] = "uniform",
    activation: Activation = "sigmoid",
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Victim:
    """Three 5x5 convolutions of 12 channels (strides 2, 2, 1) and one linear layer, with sigmoids between; no pooling.

    15,826 parameters for (3, 32, 32) and 10 classes, 85,036 for 100; 588 hidden units for MNIST's (1, 28, 28).

    Args:
        seed: decides the weights, alone.
        num_classes: number of logits.
        image_shape: (C, H, W).
        convolutions: 4 adds one of stride 1, as in the code of Soteria (Sun et al., CVPR 2021); named lenet4, 19,438
            parameters.
        initialization: "uniform" draws all weights and biases from U(-0.5, 0.5), as DLG does; "default" is PyTorch's
            own, whose gradients are much smaller.
        activation: the published one is the sigmoid; another changes the name ("lenet-relu"), not the weights.
        mean: per channel; 0 by default, because DLG takes raw pixels and its L-BFGS diverges on normalized ones.
        std: per channel; 1 by default.

    Raises:
        ConfigurationError: for an unknown activation.
    """

    def build() -> nn.Module:
        layers, hidden = lenet_features(image_shape, convolutions, activation)
        network = nn.Sequential(OrderedDict(**layers, fc=nn.Linear(hidden, num_classes)))
        if initialization == "uniform":
            redraw_uniform(network)
        return network

    return Victim(
        seeded(build, seed),
        architecture=architecture_name("lenet" if convolutions == 3 else f"lenet{convolutions}", activation, "sigmoid"),
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"{'U(-0.5, 0.5)' if initialization == 'uniform' else 'PyTorch default'}, seed {seed}",
    )


def lenet_features(
    image_shape: tuple[int, int, int], convolutions: int, activation: Activation = "sigmoid"
) -> tuple[dict[str, nn.Module], int]:
    """Return the layers of LeNet up to the flattening by name, and how many features (768 for 32x32) they put out."""
    before, height, width = image_shape
    layers: dict[str, nn.Module] = {}
    for number in range(1, convolutions + 1):
        layers[f"conv{number}"] = nn.Conv2d(before, 12, 5, stride=2 if number <= 2 else 1, padding=2)
        layers[f"act{number}"] = activation_layer(activation)
        before = 12
    layers["flatten"] = nn.Flatten()
    return layers, 12 * -(-height // 4) * -(-width // 4)  # two strides of 2, each rounding up


def redraw_uniform(network: nn.Module, bound: float = 0.5) -> None:
    """Draw every parameter from U(-bound, bound), those of normalization layers too; 0.5 is that of DLG and LTI."""
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -bound, bound)
