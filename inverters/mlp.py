"""The published inverter: a multilayer perceptron from all features to all pixels."""

from collections.abc import Sequence

from torch import Tensor, nn

from inverters.base import Inverter, Slots


class MLP(Inverter):
    """Two hidden layers of ReLU (Wu et al., UAI 2023, "Learning to Invert").

    Theirs is `hidden=3000` for one image of LeNet (65.7 million weights) or ResNet-20, with a sigmoid at the end for
    LeNet and none for hashed gradients, and 10,000 for four images.

    Args:
        tokens, width: T and K of the features.
        image_shape: (C, H, W).
        slots: S, images.
        hidden: units of both hidden layers.
        sigmoid: at the end.
    """

    def __init__(
        self,
        *,
        tokens: int,
        width: int,
        image_shape: Sequence[int],
        slots: int,
        hidden: int = 3000,
        sigmoid: bool = True,
    ) -> None:
        super().__init__()
        self.form = (slots, *image_shape)
        channels, height, side = image_shape
        self.layers = nn.Sequential(
            nn.Linear(tokens * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, slots * channels * height * side),
        )
        if sigmoid:
            self.layers.append(nn.Sigmoid())

    def forward(self, features: Tensor) -> Slots:
        """See `Inverter`."""
        return Slots(self.layers(features.flatten(1)).unflatten(1, self.form))
