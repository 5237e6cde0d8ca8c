"""TAEF2, a tiny autoencoder of images (madebyollin/taesd): its decoder is a generator, its encoder a warm start."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gibench.errors import ConfigurationError
from gibench.search.generator import Generator

LATENT, WIDTH, FACTOR = 32, 64, 8
"""Channels of the latent and of all maps; pixels per side of a place of the latent."""


class TAEF2(Generator):
    """(32, H/8, W/8) latents -> three doublings of the side, in residual blocks of 64 channels -> pixels.

    Stages: the blocks at each side, four of them. The first squeezes the latent to (-3, 3) by 3 tanh(z / 3); its three
    blocks also mix the whole image, by normalization over groups of channels. The network draws pixels, rarely a bit
    outside of [0, 1]: there we cut them off, so that such a pixel has no derivative. Names of parameters are those of
    its published weights after "layers." (see `generators.pretrained`), and the same weights draw images of any size.

    It draws anything, not only images of one distribution: a latent has 32/192 of an image's numbers. Round trips of
    CIFAR-10 through both halves have 24.1 dB at 32 pixels and 30.6 dB enlarged to 64. Latents of real images are close
    to N(0, 1) in scale, but far from independent.

    Args:
        image_shape: (3, H, W), both sides multiples of 8.

    Raises:
        ConfigurationError: for other images.
    """

    _STARTS = (0, 6, 11, 16, 20)

    def __init__(self, *, image_shape: Sequence[int] = (3, 32, 32)) -> None:
        super().__init__()
        if (
            len(image_shape) != 3
            or image_shape[0] != 3
            or min(image_shape[1:]) < 1
            or any(side % FACTOR for side in image_shape[1:])
        ):
            raise ConfigurationError(f"images are {tuple(image_shape)}; TAEF2 draws (3, H, W), multiples of {FACTOR}.")
        _, height, width = image_shape
        self.image_shape = (3, height, width)
        self.latent_shape = (LATENT, height // FACTOR, width // FACTOR)
        layers: list[nn.Module] = [_Squeeze(), _convolution(LATENT, WIDTH), nn.ReLU()]
        for blocks, mixes in ((3, True), (3, False), (3, False)):
            layers += [_Block(mixes=mixes) for _ in range(blocks)]
            layers += [nn.Upsample(scale_factor=2), _convolution(WIDTH, WIDTH, bias=False)]
        self.layers = nn.Sequential(*layers, _Block(), _convolution(WIDTH, 3))

    @property
    def depth(self) -> int:
        """One stage for each side."""
        return len(self._STARTS) - 1

    def stage(self, index: int, features: Tensor, classes: Tensor | None) -> Tensor:
        """See `Generator`."""
        features = self.layers[self._STARTS[index] : self._STARTS[index + 1]](features)
        return features.clamp(0, 1) if index == self.depth - 1 else features


class TAEF2Encoder(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> latents (N, 32, H/8, W/8): where a search for an image may start.

    Convolutions of stride 2 in place of the decoder's doublings. Names as in `TAEF2`.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, WIDTH), _Block()]
        for mixes in (False, False, True):
            layers += [_convolution(WIDTH, WIDTH, bias=False, stride=2), *(_Block(mixes=mixes) for _ in range(3))]
        self.layers = nn.Sequential(*layers, _convolution(WIDTH, LATENT))

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        latents: Tensor = self.layers(images)
        return latents


class _Squeeze(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return 3 * torch.tanh(latents / 3)


class _Block(nn.Module):
    """ReLU(x + three convolutions of x); where it mixes, x first gets what groups of channels have over all places."""

    def __init__(self, *, mixes: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _convolution(WIDTH, WIDTH), nn.ReLU(), _convolution(WIDTH, WIDTH), nn.ReLU(), _convolution(WIDTH, WIDTH)
        )
        if mixes:
            wide = 4 * WIDTH
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )
        self.mixes = mixes

    def forward(self, maps: Tensor) -> Tensor:
        if self.mixes:
            maps = maps + self.pool(maps)
        return torch.relu(maps + self.conv(maps))


def _convolution(inputs: int, outputs: int, *, bias: bool = True, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=bias)
