"""What a generator under training shows: pictures of fixed latents, with BatchNorm statistics of its own."""

import io
import math
from pathlib import Path

import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.report.pictures import to_image
from gibench.search.generator import Generator
from gibench.seeding import generator as random_numbers
from gibench.storage import write_atomically


def latents_for(generator: Generator, count: int, *purpose: str | int) -> tuple[Tensor, Tensor | None]:
    """Draw `count` latents N(0, 1) and classes in turn, (count, K), or None for a generator without."""
    like = next(generator.parameters())
    latents = torch.randn(count, *generator.latent_shape, generator=random_numbers(*purpose)).to(like)
    if generator.num_classes is None:
        return latents, None
    return latents, F.one_hot(torch.arange(count) % generator.num_classes, generator.num_classes).to(like)


@torch.no_grad()
def standing_statistics(generator: Generator, *, seed: int, batches: int = 20, size: int = 128) -> Generator:
    """Measure the BatchNorm statistics of a generator on latents N(0, 1), and return it in evaluation mode.

    Averaged weights were never run on images, so the statistics of the training are not theirs (Brock et al., ICLR
    2019: "standing statistics"). A generator without BatchNorm stays as it is.
    """
    norms = [module for module in generator.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for batch in range(batches if norms else 0):
        generator(*latents_for(generator, size, "statistics", seed, batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return generator.eval()


def write_grid(images: Tensor, path: Path, *, columns: int = 8, factor: int = 2) -> Image.Image:
    """Write images (N, C, H, W) in [0, 1] as one PNG, row by row, each pixel `factor` wide; return the picture."""
    count, depth, height, width = images.shape
    rows = math.ceil(count / columns)
    grid = torch.ones(rows * columns, depth, height, width)
    grid[:count] = images.float().cpu()
    grid = grid.view(rows, columns, depth, height, width).permute(2, 0, 3, 1, 4)
    picture = to_image(grid.reshape(depth, rows * height, columns * width))
    picture = picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomically(buffer.getvalue(), path)
    return picture


def publish_grid(images: Tensor, path: Path, logger: object) -> None:
    """Write images as `write_grid` does, and hand the picture to Weights & Biases, under the name of its folder."""
    picture = write_grid(images, path)
    if isinstance(logger, WandbLogger):
        logger.log_image(path.parent.name, images=[picture], caption=[path.stem])
