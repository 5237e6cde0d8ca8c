"""A convolutional decoder: a perceptron for the coarse image, upsampling residual blocks for the rest."""

from collections.abc import Sequence

from torch import Tensor, nn

from gibench.errors import ConfigurationError
from inverters.base import Inverter, Slots


class Convolutional(Inverter):
    """Features -> `hidden` units -> a map of an eighth of the image -> three times upsampled and convolved -> pixels.

    Its weights say that neighbors belong together, which the perceptron has to learn; its last layers cost few weights,
    so that at equal numbers the first layer is wider.

    Args:
        tokens, width: T and K of the features.
        image_shape: (C, H, W); H and W are multiples of eight.
        slots: S, images.
        hidden: units after the first layer.
        channels: of the coarsest map; halved with each upsampling.
    """

    def __init__(
        self,
        *,
        tokens: int,
        width: int,
        image_shape: Sequence[int],
        slots: int,
        hidden: int = 1024,
        channels: int = 256,
    ) -> None:
        super().__init__()
        self.image_shape = tuple(image_shape)
        depth, height, side = image_shape
        if height % 8 or side % 8 or channels % 8:
            raise ConfigurationError(f"height {height}, width {side} and channels {channels} must be multiples of 8.")
        self.slots, self.coarse = slots, (channels, height // 8, side // 8)
        self.read = nn.Sequential(
            nn.Linear(tokens * width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, slots * channels * (height // 8) * (side // 8)),
        )
        self.draw = nn.Sequential(
            upsampling(channels, channels // 2),
            upsampling(channels // 2, channels // 4),
            upsampling(channels // 4, channels // 8),
            nn.Conv2d(channels // 8, depth, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, features: Tensor) -> Slots:
        """See `Inverter`."""
        maps = self.read(features.flatten(1)).view(-1, *self.coarse)
        return Slots(self.draw(maps).view(len(features), self.slots, *self.image_shape))


def upsampling(inputs: int, outputs: int) -> nn.Module:
    """Twice the height and width: nearest neighbors, then two convolutions around a normalization per image."""
    return nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(min(8, outputs), outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.SiLU(),
    )
