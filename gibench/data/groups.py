"""Fixed groups of updates that are attacked together: the items of the data loader."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from gibench.data.collection import Pool
from gibench.types import Batch


def update_id(image_ids: Sequence[str]) -> str:
    """Return the name of the update of these images: 16 hexadecimal digits of their SHA-256."""
    return hashlib.sha256("\n".join(image_ids).encode()).hexdigest()[:16]


def grouped(updates: int, together: int) -> list[range]:
    """Cut 0..updates-1 into runs of `together`; a last run of one joins its neighbor: controls need a partner."""
    starts = list(range(0, updates, together))
    if len(starts) > 1 and updates - starts[-1] == 1:
        starts.pop()
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], updates], strict=True)]


def to_pixels(images: NDArray[np.uint8] | NDArray[np.float32]) -> Tensor:
    """Copy stored images (..., H, W, C) to float32 (..., C, H, W) in [0, 1]."""
    pixels = torch.from_numpy(images).movedim(-1, -3)
    if images.dtype == np.uint8:
        return pixels.contiguous().to(torch.float32).div_(255)
    return pixels.clone(memory_format=torch.contiguous_format)


class Groups(Dataset[Batch]):
    """Groups of updates; item g is the Batch of all updates in group g.

    Args:
        pool: where the images lie.
        groups: per group, per update, the B positions of its images in the pool.
    """

    def __init__(self, pool: Pool, groups: list[list[list[int]]]) -> None:
        self.pool = pool
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch:
        """Return images (U, B, C, H, W) with their labels and names."""
        rows = self.groups[index]
        names = tuple(tuple(self.pool.ids[position] for position in row) for row in rows)
        return Batch(
            images=to_pixels(self.pool.images[np.array(rows)]),
            labels=torch.from_numpy(self.pool.labels[np.array(rows)]),
            image_ids=names,
            update_ids=tuple(update_id(row) for row in names),
        )
