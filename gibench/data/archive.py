"""Arrays from files of users: each way in which they can be wrong has one line that says what to do."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from gibench.errors import DataNotFoundError, ImageRangeError, NonFiniteError, ShapeError


def read_array(path: Path, key: str) -> NDArray[Any]:
    """Return array `key` of the .npz file `path`; pickled objects are refused, not executed.

    Raises:
        DataNotFoundError: where the file is missing, is no readable .npz of plain arrays, or lacks the key.
    """
    if not path.is_file():
        raise DataNotFoundError(f"there is no file {path}; write it with numpy.savez(path, {key}=..., ...).")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, NpzFile):
            raise DataNotFoundError(f"{path} is one array; name the arrays: numpy.savez(path, {key}=..., ...).")
        with archive:
            if key not in archive:
                raise DataNotFoundError(f"{path} holds {', '.join(archive.files) or 'nothing'}; add the array {key!r}.")
            array: NDArray[Any] = archive[key]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).split("\n")[0]
        raise DataNotFoundError(f"{path} is not a readable .npz of plain arrays ({reason}); write it anew.") from error
    return array


def as_images(array: NDArray[Any], source: str) -> NDArray[Any]:
    """Return images as (N, H, W, C), uint8 or float32 in [0, 1].

    Args:
        array: (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3; uint8 in 0..255, or floating point in [0, 1].
        source: names the array in error messages.

    Raises:
        ShapeError: for any other shape, and where both layouts fit.
        ImageRangeError: for other types, and for pixels outside [0, 1], for example normalized ones.
        NonFiniteError: for NaN or infinity.
    """
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ShapeError(f"{source} has shape {array.shape}; pass (N, H, W, C), (N, C, H, W) or (N, H, W), none zero.")
    images = _channels_last(array, source)
    if images.dtype == np.uint8:
        if images.max() <= 1:
            raise ImageRangeError(f"{source} is uint8 and never exceeds 1; store 0..255, or floating point in [0, 1].")
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise ImageRangeError(f"{source} is {images.dtype}; store uint8 in 0..255 or floating point in [0, 1].")
    low, high = float(images.min()), float(images.max())  # NaN if any pixel is
    if not np.isfinite([low, high]).all():
        raise NonFiniteError(f"{source} holds NaN or infinity; repair the file.")
    if low < 0 or high > 1:
        raise ImageRangeError(
            f"{source} spans [{low:.3g}, {high:.3g}]; store pixels in [0, 1] (the victim normalizes them)."
        )
    return images.astype(np.float32)


def _channels_last(array: NDArray[Any], source: str) -> NDArray[Any]:
    if array.ndim == 3:
        return array[..., np.newaxis]
    first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
    if first == last:
        which = "axes 1 and 3 both look like channels" if first else "neither axis 1 nor axis 3 has 1 or 3 channels"
        raise ShapeError(f"{source} has shape {array.shape}: {which}; pass gray or RGB images (N, H, W, C).")
    return np.moveaxis(array, 1, 3) if first else array


def as_labels(array: NDArray[Any], count: int, source: str, *, num_classes: int | None = None) -> NDArray[np.int64]:
    """Return labels as int64 (count,).

    Raises:
        ShapeError: unless `array` holds `count` integers from 0 to num_classes - 1.
    """
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise ShapeError(f"{source} has shape {array.shape} and type {array.dtype}; pass {count} integers.")
    if array.min() < 0 or (num_classes is not None and array.max() >= num_classes):
        last = "K - 1" if num_classes is None else num_classes - 1
        raise ShapeError(f"{source} spans [{array.min()}, {array.max()}]; number the classes from 0 to {last}.")
    return array.astype(np.int64)
