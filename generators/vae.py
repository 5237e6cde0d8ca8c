"""A convolutional variational autoencoder (Kingma and Welling, ICLR 2014): its decoder is a generator."""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from generators.dcgan import COARSE, doublings
from gibench.errors import ConfigurationError
from gibench.search.generator import Generator


class VAEDecoder(Generator):
    """latent -> 4 x 4 map -> twice the side per block -> pixels.

    Stages: a linear layer; one block for each doubling, a transposed convolution, normalization per image over groups
    of channels, and SiLU; and a 3 x 3 convolution with a sigmoid. All of it is smooth.

    Args:
        image_shape: (C, H, W), H = W = 8, 16, 32, 64 or 128.
        latent: Z, numbers of a latent.
        widths: channels of the maps, from the finest, of the image's side, to the coarsest, 4 x 4; multiples of 4.
            Weights of coarse maps cost little time.

    Raises:
        ConfigurationError: for other images, a latent below 1, or widths that do not fit.
    """

    def __init__(
        self, *, image_shape: Sequence[int] = (3, 32, 32), latent: int = 128, widths: Sequence[int] = (32, 64, 128, 256)
    ) -> None:
        super().__init__()
        self.widths = tuple(_checked(widths, image_shape, latent))
        widths = self.widths[::-1]
        channels, side = image_shape[0], image_shape[1]
        self.latent_shape, self.image_shape = (latent,), (channels, side, side)
        self.read = nn.Sequential(
            nn.Linear(latent, widths[0] * COARSE**2), nn.Unflatten(1, (widths[0], COARSE, COARSE)), nn.SiLU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.GroupNorm(4, outputs), nn.SiLU())
            for inputs, outputs in itertools.pairwise(widths)
        )
        self.draw = nn.Sequential(nn.Conv2d(widths[-1], channels, 3, padding=1), nn.Sigmoid())

    @property
    def depth(self) -> int:
        """The linear layer, the blocks, and the last convolution."""
        return len(self.blocks) + 2

    def stage(self, index: int, features: Tensor, classes: Tensor | None) -> Tensor:
        """See `Generator`."""
        made: Tensor = [self.read, *self.blocks, self.draw][index](features)
        return made


class VAEEncoder(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> mean and logarithm of the variance of their latents, (N, Z) each.

    The decoder turned around: 4 x 4 convolutions of stride 2 with normalization and SiLU, then a linear layer.

    Args:
        image_shape: (C, H, W), as for the decoder.
        latent: Z.
        widths: channels of the maps as for the decoder; the first stands for the image itself and is not used.

    Raises:
        ConfigurationError: as the decoder.
    """

    def __init__(
        self, *, image_shape: Sequence[int] = (3, 32, 32), latent: int = 128, widths: Sequence[int] = (32, 64, 128, 256)
    ) -> None:
        super().__init__()
        widths = _checked(widths, image_shape, latent)
        layers: list[nn.Module] = []
        for inputs, outputs in zip([image_shape[0], *widths[1:-1]], widths[1:], strict=True):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.GroupNorm(4, outputs), nn.SiLU()]
        self.main = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * COARSE**2, 2 * latent))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and logarithm of the variance."""
        mean, log_variance = self.main(2 * images - 1).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)  # exp stays finite


def _checked(widths: Sequence[int], image_shape: Sequence[int], latent: int) -> list[int]:
    """The widths, if there is one for each map."""
    sides = [image_shape[1] >> block for block in range(doublings(image_shape) + 1)]
    if len(widths) != len(sides) or any(width < 4 or width % 4 for width in widths) or latent < 1:
        raise ConfigurationError(
            f"widths are {list(widths)} and latent {latent}; give one multiple of 4 for each map, of sides "
            f"{', '.join(map(str, sides))}, and a latent of 1 or more."
        )
    return list(widths)
