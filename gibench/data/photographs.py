"""The embedded data set: patches of the photographs inside the scikit-image package, so that nothing is downloaded."""

from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gibench.data.base import ImageDataModule
from gibench.data.collection import Collection, divide
from gibench.errors import DataNotFoundError

SIZE = 32
"""Pixels per side of a patch."""

CONTRAST = 8.0
"""Least standard deviation, of 255, in each quarter of a patch: it keeps patches with structure all over."""

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "ihc.png", "rocket.jpg")
CLASSES = tuple(file.split(".")[0] for file in PHOTOGRAPHS)


class Photographs(ImageDataModule):
    """Private batches of 597 patches (3, 32, 32) of five photographs; the class of a patch is its photograph.

    Each photograph is cut on a grid, without overlap. Patches that are nearly constant in any quarter are dropped: sky,
    table, black margins. prior, tune, score: a fixed random 60, 20 and 20 % of each class. Ids:
    "photographs/coffee/r03c11", row and column of the grid.

    The photographs and their terms, as the package's documentation states them:

    - astronaut: Eileen Collins, NASA; public domain.
    - chelsea: a cat, by Stefan van der Walt; CC0.
    - coffee: a cup on a table, by Rachel Michetti, courtesy of Pikolo Espresso Bar; CC0.
    - ihc: stained tissue under a microscope, Center for Microscopy and Molecular Imaging; no known restrictions.
    - rocket: Falcon 9 at Cape Canaveral, SpaceX; public domain.

    Left out are the package's stereo pair of a motorcycle, for which no terms are stated, and its pictures of a retina
    and of deep space, whose patches are so much alike that the mean of their class comes within 20 dB of each.

    Args:
        sampling: as in ImageDataModule.

    Raises:
        DataNotFoundError: on first use, when scikit-image is not installed or lacks a photograph.
    """

    def __init__(self, **sampling: Any) -> None:  # noqa: ANN401 - ImageDataModule types them
        super().__init__(**sampling)
        self.name = "photographs"

    def collect(self) -> Collection:
        """Cut all photographs."""
        cut = [patches(file) for file in PHOTOGRAPHS]
        labels = np.repeat(np.arange(len(cut), dtype=np.int64), [len(places) for _, places in cut])
        ids = tuple(
            f"{self.name}/{name}/{place}" for name, (_, places) in zip(CLASSES, cut, strict=True) for place in places
        )
        return divide(np.concatenate([images for images, _ in cut]), labels, ids, CLASSES)


@cache
def patches(file: str) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return the patches (N, 32, 32, 3) of one photograph that have structure, and their N places such as "r03c11"."""
    image = read_photograph(file)
    rows, columns = image.shape[0] // SIZE, image.shape[1] // SIZE
    grid = image[: rows * SIZE, : columns * SIZE].reshape(rows, SIZE, columns, SIZE, 3).swapaxes(1, 2)
    kept = [(row, column) for row in range(rows) for column in range(columns) if has_structure(grid[row, column])]
    return np.stack([grid[place] for place in kept]), tuple(f"r{row:02d}c{column:02d}" for row, column in kept)


def read_photograph(file: str) -> NDArray[np.uint8]:
    """Return a photograph of the scikit-image package, (H, W, 3)."""
    try:
        with as_file(files("skimage") / "data" / file) as path, Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (ModuleNotFoundError, OSError) as error:
        raise DataNotFoundError(f"scikit-image's {file} cannot be read ({error}); reinstall scikit-image.") from error


def has_structure(patch: NDArray[np.uint8]) -> bool:
    """Say whether the contrast of each quarter of a patch (32, 32, 3) reaches CONTRAST, channels averaged."""
    half = SIZE // 2
    quarters = patch.reshape(2, half, 2, half, 3)
    return bool(quarters.std(axis=(1, 3)).mean(axis=-1).min() >= CONTRAST)
