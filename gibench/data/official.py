"""Data sets with an official test set: prior is the train images; tune and score divide the test images."""

import os
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gibench.data.archive import as_images, as_labels, read_array
from gibench.data.collection import Collection, Pool
from gibench.data.splits import SplitName, tune_and_score
from gibench.errors import DataNotFoundError, ShapeError

Read = Callable[[str], NDArray[Any]]
"""Takes train_images, train_labels, test_images or test_labels and returns that array."""


def data_root(root: str | Path | None) -> Path:
    """Return the folder of data sets: `root`, else what the environment variable GIBENCH_DATA names, else "data"."""
    return Path(root or os.environ.get("GIBENCH_DATA") or "data")


@lru_cache(maxsize=4)  # the cells of a suite share one copy of the pixels
def collect_official(
    name: str,
    root: Path,
    *,
    download: bool,
    dataset: str,
    folder: str,
    image_shape: tuple[int, int, int],
    class_names: tuple[str, ...],
) -> Collection:
    """Return the three splits of a data set in `root`; pixels are read when they are first needed.

    Args:
        name: of the data set, the first part of its image ids.
        root: holds `folder` (torchvision's layout) or `<name>.npz` with the four uint8 arrays of `Read`.
        download: lets torchvision download where `root` holds neither.
        dataset: the class in torchvision.datasets.
        folder: what that class looks for in `root`.
        image_shape: (C, H, W).
        class_names: one per class.
    """
    read = _find(name, root, download=download, dataset=dataset, folder=folder)
    labels = {part: _read_labels(read, f"{part}_labels", root, len(class_names)) for part in ("train", "test")}
    ids = {part: tuple(f"{name}/{part}/{index:05d}" for index in range(len(labels[part]))) for part in labels}
    rows: dict[SplitName, list[int]] = {"prior": list(range(len(labels["train"]))), **tune_and_score(ids["test"])}

    def pool(split: SplitName, part: str) -> Pool:
        count = len(labels[part])
        return Pool(
            partial(_read_images, read, f"{part}_images", root, (count, *image_shape), rows[split]),
            labels[part][rows[split]],
            tuple(ids[part][row] for row in rows[split]),
        )

    pools: dict[SplitName, Pool] = {
        "prior": pool("prior", "train"),
        "tune": pool("tune", "test"),
        "score": pool("score", "test"),
    }
    return Collection(image_shape, len(class_names), class_names, pools)


def _find(name: str, root: Path, *, download: bool, dataset: str, folder: str) -> Read:
    arrays = root / f"{name}.npz"
    if (root / folder).is_dir() or (download and not arrays.is_file()):
        return partial(_read_torchvision, dataset, root, download)
    if arrays.is_file():
        return partial(read_array, arrays)
    raise DataNotFoundError(
        f"{dataset} is not in {root} (neither {folder} nor {arrays.name}); "
        f"set GIBENCH_DATA or root to its folder, or set download to true."
    )


def _read_torchvision(dataset: str, root: Path, download: bool, key: str) -> NDArray[Any]:
    from torchvision import datasets  # heavy, and not needed for .npz files

    part, kind = key.split("_")
    try:
        images = getattr(datasets, dataset)(root, train=part == "train", download=download)
    except (OSError, RuntimeError) as error:  # torchvision's: no network, or files that are missing or damaged
        reason = str(error).split("\n")[0]
        raise DataNotFoundError(
            f"torchvision cannot {'download' if download else 'read'} {dataset} in {root} ({reason}); "
            f"delete what is incomplete there and set download to true where there is a network."
        ) from error
    return np.asarray(images.data if kind == "images" else images.targets)


def _read_labels(read: Read, key: str, root: Path, num_classes: int) -> NDArray[np.int64]:
    labels = read(key)
    return as_labels(labels, labels.size, f"{root}: {key}", num_classes=num_classes)


def _read_images(read: Read, key: str, root: Path, shape: tuple[int, ...], rows: list[int]) -> NDArray[Any]:
    images = as_images(read(key), f"{root}: {key}")
    count, channels, height, width = shape
    if images.shape != (count, height, width, channels):
        raise ShapeError(
            f"{root}: {key} has shape {images.shape}; its labels ask for {(count, height, width, channels)}."
        )
    return images if len(rows) == count else images[rows]
