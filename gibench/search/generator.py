"""What a generative prior is to a search: a chain of stages from a latent to an image."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.errors import ConfigurationError


class Generator(nn.Module, ABC):
    """A differentiable map from a latent N(0, 1) to an image in [0, 1], in stages.

        latent -> stage 0 -> features_1 -> stage 1 -> features_2 -> ... -> last stage -> image

    so that a search can start from any of them: GIFD searches features_1, features_2, .. in turn. What is between two
    stages is one tensor, all that the next stage needs besides the classes. A generator is used in evaluation mode,
    with frozen weights; `torch.func.functional_call` gives it others. It is differentiable twice, forward and reverse,
    so that Levenberg-Marquardt can search it, too.

    latent_shape: of one latent; vectors are (Z,).
    image_shape: (C, H, W) of what it draws.
    num_classes: K of a class-conditional generator; None where it takes no classes.
    name, origin, weights_sha256, weights_path: of the file that it came from; None where it came from none. origin is
        what its training images are to those that are attacked, which the threat model has to grant; None, too, where
        it was learned without images.
    """

    latent_shape: tuple[int, ...]
    image_shape: tuple[int, int, int]
    num_classes: int | None = None
    name: str | None = None
    origin: Literal["in_distribution", "out_of_distribution"] | None = None
    weights_sha256: str | None = None
    weights_path: Path | None = None

    @property
    @abstractmethod
    def depth(self) -> int:
        """The number of stages, at least 1."""

    @abstractmethod
    def stage(self, index: int, features: Tensor, classes: Tensor | None) -> Tensor:
        """Return what stage `index` makes of features (N, *shape): the next ones, or of the last stage images.

        Args:
            index: from 0; stage 0 takes latents (N, *latent_shape).
            features: of N images.
            classes: probabilities (N, K) for a class-conditional generator, else None.
        """

    def forward(
        self, features: Tensor, classes: Tensor | None = None, *, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Run the stages `first` to `last` - 1; from a latent to the image by default."""
        for index in range(first, self.depth if last is None else last):
            features = self.stage(index, features, classes)
        return features

    def features_shape(self, index: int) -> torch.Size:
        """The shape of what stage `index` takes, of one image; of `depth`, the image's.

        Raises:
            ConfigurationError: there is no such stage.
        """
        if not 0 <= index <= self.depth:
            raise ConfigurationError(f"there is no stage {index}; {type(self).__name__} has 0 to {self.depth - 1}.")
        like = next(self.parameters())
        latent = like.new_zeros(1, *self.latent_shape)
        classes = None if self.num_classes is None else like.new_full((1, self.num_classes), 1 / self.num_classes)
        with torch.no_grad():
            features: Tensor = self(latent, classes, last=index)
        return features.shape[1:]


def resampling(generator: Generator, shape: tuple[int, ...], *, resample: bool) -> Callable[[Tensor], Tensor]:
    """What brings a generator's images (N, C, h, w) to another size, (N, C, H, W).

    Pixels are averaged by area where the generator's images are larger, and interpolated bilinearly where they are
    smaller.

    Args:
        generator: whose images.
        shape: (C, H, W) that is wanted.
        resample: whether another size is wanted at all.

    Raises:
        ConfigurationError: the generator's images have other channels, or another size and `resample` is off.
    """
    own, name = tuple(generator.image_shape), type(generator).__name__
    if own == tuple(shape):
        return lambda images: images
    if own[0] != shape[0]:
        raise ConfigurationError(f"{name} draws {own[0]} channels, the images have {shape[0]}; use another generator.")
    if not resample:
        raise ConfigurationError(
            f"{name} draws {own[1]} x {own[2]} pixels, the images have {shape[1]} x {shape[2]}; set resample, or use a "
            "generator of their size."
        )
    if own[1] >= shape[1] and own[2] >= shape[2]:
        return lambda images: F.interpolate(images, size=shape[1:], mode="area")
    return lambda images: F.interpolate(images, size=shape[1:], mode="bilinear", align_corners=False)
