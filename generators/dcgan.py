"""DCGAN (Radford, Metz, Chintala, ICLR 2016): transposed convolutions from a latent to an image."""

from collections.abc import Sequence

from torch import Tensor, nn

from gibench.errors import ConfigurationError
from gibench.search.generator import Generator

COARSE = 4
"""Pixels per side of the first map."""


class DCGAN(Generator):
    """latent -> 4 x 4 map -> twice the side per block -> tanh, moved to [0, 1].

    Each block is a transposed convolution without bias, BatchNorm and ReLU; the last one has tanh alone. Each is a
    stage: four for 32 pixels, five for 64. Layers and names of parameters (`main.0.weight`, ..) are those of the DCGAN
    in PyTorch's examples, so that its weights for 64 pixels load as they are; those draw tanh in [-1, 1], we
    (1 + tanh) / 2. For 32 pixels it is the same chain, one block shorter.

    Args:
        image_shape: (C, H, W), H = W = 8, 16, 32, 64 or 128.
        latent: Z, numbers of a latent.
        width: channels of the last map, "ngf"; doubled with each block towards the latent.

    Raises:
        ConfigurationError: for other images, or a latent or width below 1.
    """

    def __init__(self, *, image_shape: Sequence[int] = (3, 32, 32), latent: int = 100, width: int = 64) -> None:
        super().__init__()
        if latent < 1 or width < 1:
            raise ConfigurationError(f"latent is {latent} and width {width}; set them to 1 or more.")
        blocks = doublings(image_shape)
        channels, side = image_shape[0], image_shape[1]
        self.latent_shape, self.image_shape = (latent,), (channels, side, side)
        widths = [width << block for block in reversed(range(blocks))]
        layers: list[nn.Module] = []
        for inputs, outputs in zip([latent, *widths], [*widths, channels], strict=True):
            stride, padding = (2, 1) if layers else (1, 0)
            layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False))
            if len(layers) < 3 * blocks:
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
        self.main = nn.Sequential(*layers, nn.Tanh())
        self.apply(small_normal)

    @property
    def depth(self) -> int:
        """One stage for each transposed convolution."""
        return (len(self.main) + 1) // 3

    def stage(self, index: int, features: Tensor, classes: Tensor | None) -> Tensor:
        """See `Generator`."""
        before = features[:, :, None, None] if index == 0 else features
        maps: Tensor = self.main[3 * index : 3 * index + 3](before)
        return (maps + 1) / 2 if index == self.depth - 1 else maps


def doublings(image_shape: Sequence[int]) -> int:
    """How often the side of the first map is doubled for images of that shape.

    Raises:
        ConfigurationError: they are not square, or of another side than 8, 16, 32, 64 or 128.
    """
    sides = {COARSE << count: count for count in range(1, 6)}
    if len(image_shape) != 3 or image_shape[1] != image_shape[2] or image_shape[1] not in sides or image_shape[0] < 1:
        raise ConfigurationError(
            f"images are {tuple(image_shape)}; this network draws (C, S, S) with S one of {', '.join(map(str, sides))}."
        )
    return sides[image_shape[1]]


def small_normal(module: nn.Module) -> None:
    """Weights as the paper starts them: N(0, 0.02) of convolutions, N(1, 0.02) of BatchNorm."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
