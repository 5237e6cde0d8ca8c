"""Small real images for generators: the embedded photographs, shrunk to eight pixels."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from generators import VAESettings, fit_generator
from gibench.data import Photographs
from gibench.data.splits import Split


@cache
def _split(name: str) -> Split:
    images, labels, ids = Photographs().split(name)  # type: ignore[arg-type]
    return Split(avg_pool2d(images, 4), labels, ids)


class Shrunk:
    """359 and 119 images (3, 8, 8) of five classes in the splits prior and tune."""

    name = title = "shrunk"

    def split(self, name: str) -> Split:
        if name == "score":
            raise AssertionError("a generator must not see the score split")
        return _split(name)


class Broken(Shrunk):
    """With a hole in an image."""

    def split(self, name: str) -> Split:
        images, labels, ids = _split(name)
        return Split(torch.full_like(images, torch.nan), labels, ids)


KINDS: dict[str, dict[str, Any]] = {
    "dcgan": {
        "model": "dcgan",
        "settings": {"width": 8, "latent": 16},
    },
    "vae": {
        "model": "vae",
        "settings": {"widths": [8, 16], "latent": 16},
        "vae": VAESettings(beta=0.005),
        "learning_rate": 3e-3,
    },
}
FAST: dict[str, Any] = {
    "steps": 7,
    "every": 2,
    "together": 16,
    "tune": 20,
    "project": 0,
    "flips": True,
    "accelerator": "cpu",
}


def fit(out: Path, kind: str = "vae", **changes: Any) -> Path:
    """A short training of one of `KINDS`."""
    (file,) = fit_generator(**{"data": Shrunk(), "out": out, **FAST, **KINDS[kind], **changes})
    return file


def mean_image_psnr() -> float:
    """Of the tune images, by the mean of the prior split."""
    errors: Tensor = (_split("tune").images - _split("prior").images.mean(0)).square().flatten(1).mean(1)
    return float(-10 * errors.log10().mean())
