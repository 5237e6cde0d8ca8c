"""The generators of the contract table: small, with weights and BatchNorm statistics unlike those of the start."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from generators import DCGAN, ResidualGAN, VAEDecoder
from gibench.search.generator import Generator


class Row(NamedTuple):
    """A generator under test, and the shape of what each of its stages takes; the last one is the image's."""

    build: Callable[[], Generator]
    shapes: list[tuple[int, ...]]


TABLE = {
    "dcgan 32": Row(lambda: DCGAN(latent=6, width=4), [(6,), (16, 4, 4), (8, 8, 8), (4, 16, 16), (3, 32, 32)]),
    "dcgan 64": Row(
        lambda: DCGAN(image_shape=(1, 64, 64), latent=5, width=2),
        [(5,), (16, 4, 4), (8, 8, 8), (4, 16, 16), (2, 32, 32), (1, 64, 64)],
    ),
    "residual_gan": Row(
        lambda: ResidualGAN(image_shape=(3, 16, 16), num_classes=4, latent=6, width=4),
        [(6,), (4, 4, 4), (4, 8, 8), (4, 16, 16), (3, 16, 16)],
    ),
    "vae": Row(
        lambda: VAEDecoder(image_shape=(3, 16, 16), latent=7, widths=(4, 8, 12)),
        [(7,), (12, 4, 4), (8, 8, 8), (4, 16, 16), (3, 16, 16)],
    ),
}


def made(name: str) -> Generator:
    """A generator of the table in float64, in evaluation mode, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        generator = TABLE[name].build().double()
        for key, value in generator.state_dict().items():
            if value.is_floating_point():
                start = 0.1 * torch.randn_like(value)
                value.copy_(start.abs() + 0.5 if key.endswith("running_var") else value + start)
    return generator.eval()


def inputs(generator: Generator, count: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Latents and, where they are taken, probabilities of classes."""
    numbers = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, *generator.latent_shape, generator=numbers, dtype=torch.float64)
    if generator.num_classes is None:
        return latents, None
    return latents, torch.rand(count, generator.num_classes, generator=numbers, dtype=torch.float64).softmax(1)
