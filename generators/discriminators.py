"""The adversaries of generators: networks that score images, high for real ones. They are used in training alone."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from generators.dcgan import COARSE, doublings, small_normal
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


DISCRIMINATORS: dict[str, type[Discriminator]] = {"dcgan": DCGANDiscriminator}
"""By the names that `fit_generator` takes."""
