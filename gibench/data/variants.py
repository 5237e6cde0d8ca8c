"""The same data set with fewer classes, other pixels or more images: what makes data out of distribution."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from gibench.data.collection import Collection, Pool
from gibench.data.groups import to_pixels
from gibench.data.shifts import SHIFTS, ShiftName, shifted
from gibench.data.synthetic import spectral_twins
from gibench.errors import ConfigurationError, ShapeError
from gibench.seeding import derive

_AT_ONCE = 4096
_TWIN = "+dct"


@dataclass(frozen=True)
class Variant:
    """What is done to a data set, in this order: classes are chosen, images resized, shifted, and twins added.

    classes: ascending; None is all. size: pixels per side. shift: see `gibench.data.shifts`. synthetic: see
    `gibench.data.synthetic`.
    """

    classes: tuple[int, ...] | None = None
    size: int | None = None
    shift: ShiftName | None = None
    synthetic: Literal["dct"] | None = None

    @classmethod
    def checked(cls, classes: Sequence[int] | None, size: int | None, shift: str | None, synthetic: str | None) -> Self:
        """Make a variant of arguments of a user.

        Raises:
            ConfigurationError: for what no data set can give.
        """
        if classes is not None:
            if not classes or any(isinstance(each, bool) or not isinstance(each, int) or each < 0 for each in classes):
                raise ConfigurationError(f"classes is {classes!r}; name one or more by their numbers, from 0.")
            if len(set(classes)) < len(classes):
                raise ConfigurationError(f"classes {[*classes]} names one twice; name each once.")
        if size is not None and size < 1:
            raise ConfigurationError(f"size is {size}; set it to 1 or more pixels.")
        if shift is not None and shift not in SHIFTS:
            raise ConfigurationError(f"shift is {shift!r}; choose one of {', '.join(SHIFTS)}, or leave it out.")
        if synthetic not in (None, "dct"):
            raise ConfigurationError(f"synthetic is {synthetic!r}; choose 'dct' or leave it out.")
        chosen = None if classes is None else tuple(sorted(classes))
        return cls(chosen, size, shift, synthetic)  # type: ignore[arg-type]

    @property
    def tag(self) -> str:
        """What the ids of images with other pixels end with: "+16px", "+gray", "+16px+gray" or nothing."""
        return "".join([f"+{self.size}px" if self.size else "", f"+{self.shift}" if self.shift else ""])

    def title(self, name: str) -> str:
        """The name of the data set with what was done to it, such as "cifar10-classes0-4-gray"."""
        parts = [name, *(self.tag + (_TWIN if self.synthetic else "")).split("+")[1:]]
        if self.classes is not None:
            listed = _ranges(self.classes)
            if len(listed) > 24:
                listed = f"{len(self.classes)}x{derive('classes', *self.classes):016x}"
            parts.insert(1, f"classes{listed}")
        return "-".join(parts)


def vary(collection: Collection, variant: Variant, name: str) -> Collection:
    """Return a data set after what `variant` says; which split an image belongs to never changes.

    Raises:
        ConfigurationError: a class that the data set lacks, or of which a split has no image.
        ShapeError: images that are not square are to be resized.
    """
    return collection if variant == Variant() else _vary(collection, variant, name)


@lru_cache(maxsize=4)  # the cells of a suite share one copy of the pixels
def _vary(collection: Collection, variant: Variant, name: str) -> Collection:
    channels, height, width = collection.image_shape
    if variant.classes and variant.classes[-1] >= collection.num_classes:
        raise ConfigurationError(
            f"there is no class {variant.classes[-1]} in {name}, whose classes are 0 to {collection.num_classes - 1}."
        )
    if variant.size and height != width:
        raise ShapeError(f"size is {variant.size}, but the images of {name} are {height} x {width}; cut them square.")
    pools = {split: _changed(pool, variant) for split, pool in collection.pools.items()}
    for split, pool in pools.items():
        if not pool.ids:
            raise ConfigurationError(f"{name} has no image of classes {variant.classes} in its split {split}.")
    if variant.synthetic:
        pools["prior"] = _with_twins(pools["prior"], collection.num_classes)
    side = variant.size
    shape = (channels, side, side) if side else collection.image_shape
    return Collection(shape, collection.num_classes, collection.class_names, pools)


def _changed(pool: Pool, variant: Variant) -> Pool:
    rows = np.arange(len(pool.ids))
    if variant.classes is not None:
        rows = np.flatnonzero(np.isin(pool.labels, variant.classes))
    ids = tuple(pool.ids[row] + variant.tag for row in rows)
    return Pool(partial(_read, pool, rows, variant), pool.labels[rows], ids)


def _read(pool: Pool, rows: NDArray[np.int64], variant: Variant) -> NDArray[Any]:
    if not variant.tag:
        return pool.images[rows]
    parts = np.split(rows, range(_AT_ONCE, len(rows), _AT_ONCE))
    return np.concatenate([_drawn(pool.images[part], variant) for part in parts])


def _drawn(stored: NDArray[Any], variant: Variant) -> NDArray[Any]:
    """Resize and shift stored images (N, H, W, C); bytes stay bytes, rounded."""
    images = to_pixels(stored)
    if variant.size:
        sides = [variant.size, variant.size]
        images = F.interpolate(images, sides, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
    if variant.shift:
        images = shifted(images, variant.shift)
    if stored.dtype == np.uint8:
        images = (images * 255).round().to(torch.uint8)
    found: NDArray[Any] = images.movedim(1, -1).contiguous().numpy()
    return found


def _with_twins(pool: Pool, num_classes: int) -> Pool:
    names = tuple(name + _TWIN for name in pool.ids)
    labels = np.array([derive("label", name) % num_classes for name in names], dtype=np.int64)
    return Pool(partial(_read_with_twins, pool, names), np.concatenate([pool.labels, labels]), pool.ids + names)


def _read_with_twins(pool: Pool, names: tuple[str, ...]) -> NDArray[Any]:
    return np.concatenate([pool.images, spectral_twins(pool.images, names)])


def _ranges(classes: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as "0-2_5"."""
    runs: list[list[int]] = []
    for each in classes:
        if runs and runs[-1][-1] == each - 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    return "_".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
