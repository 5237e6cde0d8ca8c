"""Images of your own: one .npz file with images and labels."""

from pathlib import Path
from typing import Any

from gibench.data.archive import as_images, as_labels, read_array
from gibench.data.base import ImageDataModule
from gibench.data.collection import Collection, divide
from gibench.data.official import data_root


class Arrays(ImageDataModule):
    """Private batches from an .npz file, as `numpy.savez("mine.npz", images=images, labels=labels)` writes it.

    prior, tune, score: a fixed random 60, 20 and 20 % of each class. Ids: "mine/00123", after the name of the file.

    Args:
        path: holds `images`, (N, H, W, C), (N, C, H, W) or (N, H, W) with C = 1 or 3, uint8 in 0..255 or floating point
            in [0, 1], and `labels`, N integers from 0 to K - 1. What is not there is looked for in the folder that
            GIBENCH_DATA names.
        sampling: as in ImageDataModule.

    Raises:
        DataNotFoundError: on first use, when the file is missing, not a readable .npz of plain arrays, or lacks a key.
        ImageRangeError: for other types and for pixels outside [0, 1], for example normalized ones.
        NonFiniteError: for NaN or infinity.
        ShapeError: for shapes or labels other than these.
    """

    def __init__(self, path: str | Path, **sampling: Any) -> None:  # noqa: ANN401 - ImageDataModule types them
        super().__init__(**sampling)
        places = (Path(path), data_root(None) / path)
        self.path = next((place for place in places if place.is_file()), places[0])
        self.name = self.path.stem

    def collect(self) -> Collection:
        """Read and check the file."""
        images = as_images(read_array(self.path, "images"), f"{self.path}: images")
        labels = as_labels(read_array(self.path, "labels"), len(images), f"{self.path}: labels")
        return divide(images, labels, tuple(f"{self.name}/{index:05d}" for index in range(len(images))), None)
