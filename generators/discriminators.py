"""The adversaries of generators: networks that score images, high for real ones. They are used in training alone."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from generators.dcgan import COARSE, doublings, small_normal
from generators.residual_gan import check_counts, glorot
from gibench.errors import ConfigurationError


class Discriminator(nn.Module, ABC):
    """Images (N, C, H, W) in [0, 1] -> scores (N,), without a bound."""

    @abstractmethod
    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """Score images; classes are probabilities (N, K) where the generator is class-conditional."""


class DCGANDiscriminator(Discriminator):
    """The discriminator of DCGAN: 4 x 4 convolutions of stride 2 with leaky ReLU, down to a 4 x 4 map, to one score.

    Args:
        image_shape: (C, H, W), as for `DCGAN`.
        width: channels of the first map, "ndf"; doubled with each convolution.
        normalization: "batch", as published: BatchNorm in all but the first and last layer; or "spectral" (Miyato et
            al., ICLR 2018): the spectral norm of each layer held at 1, for the hinge loss.

    Raises:
        ConfigurationError: for other images, or a width below 1.
    """

    def __init__(
        self,
        *,
        image_shape: Sequence[int] = (3, 32, 32),
        width: int = 64,
        normalization: Literal["batch", "spectral"] = "batch",
    ) -> None:
        super().__init__()
        if width < 1 or normalization not in ("batch", "spectral"):
            raise ConfigurationError(
                f"width is {width} and normalization {normalization!r}; set 1 or more, and 'batch' or 'spectral'."
            )
        layers: list[nn.Module] = []
        inputs = image_shape[0]
        for block in range(doublings(image_shape)):
            outputs = width << block
            layers.append(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=normalization == "spectral"))
            if normalization == "batch" and block:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.LeakyReLU(0.2))
            inputs = outputs
        layers.append(nn.Conv2d(inputs, 1, COARSE, bias=normalization == "spectral"))
        self.main = nn.Sequential(*layers)
        self.apply(small_normal)
        if normalization == "spectral":
            for layer in self.main:
                if isinstance(layer, nn.Conv2d):
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
                    spectral_norm(layer)

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """See `Discriminator`."""
        scores: Tensor = self.main(2 * images - 1)
        return scores.flatten()


class ProjectionDiscriminator(Discriminator):
    """Residual blocks with spectral normalization; a class adds the product of its embedding with the features.

        D(x, y) = v . h(x) + e(y) . h(x),   h the sum over places of the last map,

    for CIFAR-10 as in Miyato and Koyama (ICLR 2018): two blocks that halve the side, two that do not. Each layer's
    spectral norm is held at 1 by one power iteration a step (Miyato et al., ICLR 2018), for the hinge loss.

    Args:
        image_shape: (C, H, W), as for `ResidualGAN`; from 64 pixels on there are more blocks that halve the side.
        num_classes: K.
        width: channels of each block; 128 in the paper.

    Raises:
        ConfigurationError: for other images, or a setting below 1.
    """

    def __init__(self, *, image_shape: Sequence[int] = (3, 32, 32), num_classes: int, width: int = 128) -> None:
        super().__init__()
        halvings = max(1, doublings(image_shape) - 1)  # down to 8 x 8
        check_counts(num_classes=num_classes, width=width)
        blocks = [_Down(image_shape[0], width, halve=True, first=True)]
        blocks += [_Down(width, width, halve=True) for _ in range(halvings - 1)]
        blocks += [_Down(width, width, halve=False) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.score = nn.Linear(width, 1)
        self.embedding = nn.Linear(num_classes, width, bias=False)
        self.num_classes = num_classes
        self.apply(glorot)
        for module in [*self.modules()]:
            if isinstance(module, nn.Conv2d | nn.Linear):
                spectral_norm(module)

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """See `Discriminator`.

        Raises:
            ConfigurationError: no classes are passed.
        """
        if classes is None:
            raise ConfigurationError(
                f"the projection discriminator takes classes (N, {self.num_classes}); choose a class-conditional model."
            )
        features = F.relu(self.blocks(2 * images - 1)).sum((2, 3))
        scores: Tensor = self.score(features).flatten() + (self.embedding(classes) * features).sum(1)
        return scores


class _Down(nn.Module):
    """Two convolutions, each after ReLU (the first block reads pixels: not before its first), and perhaps averages."""

    def __init__(self, inputs: int, width: int, *, halve: bool, first: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(inputs, width, 1) if halve else None
        self.reads_pixels = first

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.second(F.relu(self.first(maps if self.reads_pixels else F.relu(maps))))
        if self.skip is None:
            same: Tensor = maps + inner
            return same
        halved: Tensor = F.avg_pool2d(inner, 2) + self.skip(F.avg_pool2d(maps, 2))
        return halved


DISCRIMINATORS: dict[str, type[Discriminator]] = {
    "dcgan": DCGANDiscriminator,
    "projection": ProjectionDiscriminator,
}
"""By the names that `fit_generator` takes."""
