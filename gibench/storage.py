"""Writing to disk: a file is there whole or not at all, and a failure says what to do."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gibench.errors import StorageError


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn a failure of the file system into one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder, then run the same "
            "command again: what is recorded is kept."
        ) from error


def write_atomically(content: bytes, path: Path) -> Path:
    """Write `content` so that `path` holds all of it or what it held before, even after a kill; return `path`."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path
