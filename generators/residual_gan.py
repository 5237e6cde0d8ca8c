"""The class-conditional generator of residual blocks of SNGAN with a projection discriminator (ICLR 2018)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from generators.dcgan import COARSE, doublings
from gibench.errors import ConfigurationError
from gibench.search.generator import Generator


class ResidualGAN(Generator):
    """latent -> 4 x 4 map -> twice the side per residual block -> BatchNorm, ReLU, convolution, tanh, in [0, 1].

    The generator of SNGAN for CIFAR-10 (Miyato et al., ICLR 2018, Table 4), with class-conditional BatchNorm as in
    Miyato and Koyama (ICLR 2018): the scale and shift of each channel are linear in the class probabilities,

        y = (1 + P a) * (x - m) / sqrt(v + eps) + P b,

    so that classes are searched like any other variable. Stages: the linear layer, each block, and the last layers;
    five for 32 pixels. BigGAN has the same blocks, and more that large images need: parts of the latent for each block,
    attention, and spectral normalization in the generator, too. We leave those out.

    Args:
        image_shape: (C, H, W), H = W = 8, 16, 32, 64 or 128.
        num_classes: K, at least 1.
        latent: Z, numbers of a latent.
        width: channels of each block; 256 in the paper.

    Raises:
        ConfigurationError: for other images, or a setting below 1.
    """

    num_classes: int

    def __init__(
        self, *, image_shape: Sequence[int] = (3, 32, 32), num_classes: int, latent: int = 128, width: int = 256
    ) -> None:
        super().__init__()
        blocks = doublings(image_shape)
        check_counts(num_classes=num_classes, latent=latent, width=width)
        channels, side = image_shape[0], image_shape[1]
        self.latent_shape, self.image_shape, self.num_classes = (latent,), (channels, side, side), num_classes
        self.read = nn.Sequential(nn.Linear(latent, width * COARSE**2), nn.Unflatten(1, (width, COARSE, COARSE)))
        self.blocks = nn.ModuleList(_Up(width, num_classes) for _ in range(blocks))
        self.norm = nn.BatchNorm2d(width)
        self.draw = nn.Conv2d(width, channels, 3, padding=1)
        self.apply(glorot)

    @property
    def depth(self) -> int:
        """The linear layer, the blocks, and the last layers."""
        return len(self.blocks) + 2

    def stage(self, index: int, features: Tensor, classes: Tensor | None) -> Tensor:
        """See `Generator`."""
        if index == 0:
            made: Tensor = self.read(features)
            return made
        if index < self.depth - 1:
            if classes is None:
                raise ConfigurationError(f"ResidualGAN takes classes; pass probabilities (N, {self.num_classes}).")
            larger: Tensor = self.blocks[index - 1](features, classes)
            return larger
        drawn: Tensor = self.draw(F.relu(self.norm(features)))
        return (drawn.tanh() + 1) / 2


class _ConditionalNorm(nn.Module):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Linear(num_classes, channels, bias=False)
        self.shift = nn.Linear(num_classes, channels, bias=False)

    def forward(self, maps: Tensor, classes: Tensor) -> Tensor:
        scale, shift = 1 + self.scale(classes), self.shift(classes)
        made: Tensor = scale[..., None, None] * self.norm(maps) + shift[..., None, None]
        return made


class _Up(nn.Module):
    """Twice the side: two convolutions, each after normalization and ReLU, beside a 1 x 1 convolution."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = (_ConditionalNorm(width, num_classes) for _ in range(2))
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.skip = nn.Conv2d(width, width, 1)
        self.enlarge = nn.Upsample(scale_factor=2)

    def forward(self, maps: Tensor, classes: Tensor) -> Tensor:
        inner = self.first(self.enlarge(F.relu(self.first_norm(maps, classes))))
        inner = self.second(F.relu(self.second_norm(inner, classes)))
        made: Tensor = inner + self.enlarge(self.skip(maps))  # the 1 x 1 convolution first: four times cheaper, equal
        return made


def glorot(module: nn.Module) -> None:
    """Glorot's uniform weights, as in the paper's code, sqrt(2) wider where a ReLU follows: in 3 x 3 convolutions."""
    if isinstance(module, _ConditionalNorm):
        nn.init.zeros_(module.scale.weight)
        nn.init.zeros_(module.shift.weight)
    elif isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight, 2**0.5 if module.kernel_size == (3, 3) else 1.0)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_counts(**settings: int) -> None:
    """Raise ConfigurationError where a setting is below 1."""
    if odd := {name: value for name, value in settings.items() if value < 1}:
        raise ConfigurationError(f"{', '.join(f'{name} is {value}' for name, value in odd.items())}; set 1 or more.")
