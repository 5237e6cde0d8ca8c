"""Features of pairs on disk: memory-mapped, checksummed, and resumed where a making was cut off."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gibench.errors import ConfigurationError, NonFiniteError, StorageError
from gibench.storage import storage, write_atomically


class PairCache:
    """Rows of features (T, K) in float32, in files of equal numbers of rows.

    `settings.json` says what they are features of, `checksums.json` the SHA-256 of each file; a file that is there is
    whole. Reading maps the files into memory, so that memory does not depend on the number of pairs.

    Args:
        folder: one for each set of pairs.
        settings: what decides the features; a folder with others is refused.
        row: (T, K).

    Raises:
        ConfigurationError: the folder holds other pairs.
        StorageError: the folder cannot be written, or has no room for all pairs.
        NonFiniteError: a pair holds NaN or infinity; what was made before it is kept.
    """

    def __init__(self, folder: str | Path, *, settings: dict[str, str | int], row: tuple[int, int]) -> None:
        self.folder, self.row = Path(folder), row
        self._maps: list[NDArray[np.float32]] = []
        noted, text = self.folder / "settings.json", json.dumps(settings, indent=2)
        if not noted.exists():
            write_atomically(text.encode(), noted)
        elif noted.read_text() != text:
            raise ConfigurationError(f"{self.folder} holds the pairs of another training; choose another folder.")

    def fill(self, parts: Sequence[Callable[[], Tensor]], *, rows: int) -> None:
        """Make what is not there yet, and check what is.

        Args:
            parts: make `rows` rows each, (rows, T, K); the last may make fewer.
            rows: see `parts`.
        """
        index = self.folder / "checksums.json"
        sums: dict[str, str] = json.loads(index.read_text()) if index.exists() else {}
        files = [self.folder / f"pairs-{number:06}.npy" for number in range(len(parts))]
        missing = [file for file in files if sums.get(file.name) is None or sums[file.name] != _sha256(file)]
        self._check_room(len(missing) * rows * 4 * self.row[0] * self.row[1])
        for make, file in zip(parts, files, strict=True):
            if file in missing:
                made = make().cpu().float().contiguous()
                if not torch.isfinite(made).all():
                    raise NonFiniteError(
                        f"the pairs of {file.name} hold NaN or infinity; repair the client's rate or defense."
                    )
                buffer = io.BytesIO()
                np.save(buffer, made.numpy(), allow_pickle=False)
                write_atomically(buffer.getvalue(), file)
                sums[file.name] = hashlib.sha256(buffer.getbuffer()).hexdigest()
                write_atomically(json.dumps(sums, indent=2).encode(), index)
        self._maps = [np.load(file, mmap_mode="r", allow_pickle=False) for file in files]
        self._rows = rows

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """The rows of these numbers, (n, T, K)."""
        found = np.empty((len(numbers), *self.row), dtype=np.float32)
        wanted = numbers.numpy()
        for file in np.unique(wanted // self._rows):
            here = wanted // self._rows == file
            found[here] = self._maps[file][wanted[here] % self._rows]
        return torch.from_numpy(found)

    def _check_room(self, needed: int) -> None:
        with storage(self.folder):
            free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise StorageError(
                f"{self.folder} needs {needed / 2**30:.1f} GiB for its pairs, and {free / 2**30:.1f} are free; free "
                "space, hash into fewer buckets, or train without a cache."
            )


def _sha256(file: Path) -> str | None:
    if not file.is_file():
        return None
    with storage(file), file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
