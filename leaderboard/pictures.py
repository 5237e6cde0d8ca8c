"""Stored pictures: which images have one, how they are written, and what is refused as a PNG."""

import hashlib
import io
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from struct import unpack

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from gibench.report.pictures import to_image

FIXED = 6
"""The first images of the scenario, in the order of attack: the same for all its attacks, never chosen by looks."""
LARGEST_SIDE = 256
MOST_BYTES = 256 * 2**10
MAGIC = b"\x89PNG\r\n\x1a\n"
ROUNDING = 0.5 / 255
"""RMS error that 8 bits can add to a reconstruction, at most."""


def chosen(psnr: Sequence[float]) -> list[int]:
    """Return which images of an entry have a picture: the fixed sample, then its best, median and worst image."""
    order = sorted(range(len(psnr)), key=lambda image: (psnr[image], image))
    ranked = [order[-1], order[len(order) // 2], order[0]]
    return list(dict.fromkeys([*range(min(FIXED, len(psnr))), *ranked]))


def encode(image: Tensor) -> bytes:
    """Return (C, H, W) in [0, 1] as PNG with the pixels that it has, 8 bits each."""
    buffer = io.BytesIO()
    to_image(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def digest(content: bytes) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(content).hexdigest()


def complaint(path: Path, shape: tuple[int, int, int], sha256: str) -> str | None:
    """Say why a file is not the picture that an entry speaks of, or None where it is.

    Its size and dimensions are read before anything is decoded, so that no picture can fill the memory.
    """
    if path.is_symlink() or not path.is_file():
        return "is missing, or no plain file"
    if path.stat().st_size > MOST_BYTES:
        return f"has {path.stat().st_size:,} bytes; a picture has at most {MOST_BYTES:,}"
    content = path.read_bytes()
    if content[:8] != MAGIC or content[12:16] != b"IHDR" or len(content) < 33:
        return "is no PNG"
    width, height, bits, color = unpack(">IIBB", content[16:26])
    if max(width, height) > LARGEST_SIDE or (height, width) != shape[1:]:
        return f"is {width} x {height} pixels; its images have {shape[2]} x {shape[1]}, at most {LARGEST_SIDE} a side"
    if bits != 8 or color != (2 if shape[0] == 3 else 0):
        return "is not of 8 bits, with three colors or with gray alone, as its images are"
    if _surplus(content):
        return "holds more than one picture's data; write it with `gibench leaderboard add`"
    if digest(content) != sha256:
        return "is not the file that the entry names: its SHA-256 differs"
    try:
        pixels(path)
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError, zlib.error) as error:
        return f"cannot be decoded: {error}"[:200]
    return None


def pixels(path: Path) -> NDArray[np.float64]:
    """Read a picture that was checked: (H, W, C) in [0, 1]."""
    with warnings.catch_warnings(), Pillow.open(path, formats=["PNG"]) as image:
        warnings.simplefilter("error", Pillow.DecompressionBombWarning)
        array = np.asarray(image, dtype=np.float64) / 255
    return array if array.ndim == 3 else array[:, :, None]


def _surplus(content: bytes) -> bool:
    """Whether there are other chunks than a picture needs, such as text, or bytes behind its end."""
    place = len(MAGIC)
    while place + 12 <= len(content):
        length, kind = unpack(">I4s", content[place : place + 8])
        if kind not in (b"IHDR", b"IDAT", b"IEND"):
            return True
        place += 12 + length
        if kind == b"IEND":
            return bool(place != len(content))
    return True
