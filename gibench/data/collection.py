"""What a data set hands to its LightningDataModule: three pools of images as they are stored."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gibench.data.splits import SplitName, partition


@dataclass(frozen=True)
class Pool:
    """One split as it is stored.

    read: returns images (N, H, W, C), uint8, or float32 in [0, 1]; called once, when they are first needed.
    labels: (N,), int64. ids: N names.
    """

    read: Callable[[], NDArray[Any]]
    labels: NDArray[np.int64]
    ids: tuple[str, ...]

    @cached_property
    def images(self) -> NDArray[Any]:
        """The stored images (N, H, W, C)."""
        return self.read()


@dataclass(frozen=True, eq=False)  # two of them are never compared, and one can be a key
class Collection:
    """A data set in three disjoint splits.

    image_shape: (C, H, W). class_names: one per class, or None where they are unknown.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...] | None
    pools: dict[SplitName, Pool]


def divide(
    images: NDArray[Any], labels: NDArray[np.int64], ids: tuple[str, ...], class_names: tuple[str, ...] | None
) -> Collection:
    """Return images (N, H, W, C) that have no official test set as a collection of three fixed random splits."""
    _, height, width, channels = images.shape
    pools = {
        name: Pool(partial(images.take, rows, axis=0), labels[rows], tuple(ids[row] for row in rows))
        for name, rows in partition(ids, labels.tolist()).items()
    }
    return Collection((channels, height, width), int(labels.max()) + 1, class_names, pools)
