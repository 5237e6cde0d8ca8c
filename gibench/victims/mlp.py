"""The four-layer perceptron of "Inverting Gradients" (Geiping et al., NeurIPS 2020): where the bias attack is exact."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from gibench.victims.activations import Activation, activation_layer, architecture_name
from gibench.victims.base import Victim, seeded
from gibench.victims.normalization import CIFAR10_MEAN, CIFAR10_STD


def mlp(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    width: int = 1024,
    activation: Activation = "relu",
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Victim:
    """Linear layers pixels -> width -> width -> width -> classes with ReLU between; PyTorch's initialization.

    5,256,202 parameters for 3072-1024-1024-1024-10. Another activation changes the name ("mlp-silu"), not the weights.

    Raises:
        ConfigurationError: for an unknown activation.
    """
    channels, height, columns = image_shape

    def build() -> nn.Module:
        return nn.Sequential(
            OrderedDict(
                flatten=nn.Flatten(),
                fc1=nn.Linear(channels * height * columns, width),
                act1=activation_layer(activation),
                fc2=nn.Linear(width, width),
                act2=activation_layer(activation),
                fc3=nn.Linear(width, width),
                act3=activation_layer(activation),
                fc4=nn.Linear(width, num_classes),
            )
        )

    return Victim(
        seeded(build, seed),
        architecture=architecture_name("mlp" if width == 1024 else f"mlp{width}", activation, "relu"),
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"PyTorch default, seed {seed}",
    )
