"""Records on disk: one JSON line per image and attack, flushed before it counts, never lost and never written twice."""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from gibench.errors import RecordError
from gibench.storage import storage, write_atomically
from gibench.types import Record

Key = tuple[str, str, str, int]
"""scenario, attack, update_id, position in the batch: what a run records once."""


class RecordFile:
    """`records.jsonl` of a run folder, to read, to append to, and to resume from.

    A line counts once its newline is on disk. A last line without one is what a kill leaves: it is set aside in
    `records.jsonl.torn` and its update is attacked again. Any other damage is a RecordError, because it was not a kill.

    `torn` says whether that was the case.

    Args:
        path: the file; it need not exist yet.

    Raises:
        RecordError: naming the line that is not a record.
        StorageError: when the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.torn = self._set_torn_line_aside()
        self.records = read_records(path)
        self._written = {key(record) for record in self.records}

    def finished(self, scenario: str, attack: str, *, batch_size: int) -> set[str]:
        """The ids of the updates all of whose `batch_size` images are recorded."""
        return finished(self.records, scenario, attack, batch_size=batch_size)

    def append(self, records: Iterable[Record]) -> None:
        """Write the records that are not there yet, and return once they are on disk."""
        new = list({key(record): record for record in records if key(record) not in self._written}.values())
        if not new:
            return
        text = "".join(record.model_dump_json() + "\n" for record in new)
        with storage(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self.records += new
        self._written |= {key(record) for record in new}

    def discard(self, keys: Collection[Key]) -> None:
        """Take records out again, once another file holds them; without records there is no file."""
        self.records = [record for record in self.records if key(record) not in keys]
        self._written -= set(keys)
        if self.records:
            write_atomically("".join(record.model_dump_json() + "\n" for record in self.records).encode(), self.path)
        else:
            with storage(self.path):
                self.path.unlink(missing_ok=True)

    def _set_torn_line_aside(self) -> bool:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.with_suffix(".jsonl.torn").open("ab") as file:
                file.write(content[whole:] + b"\n")
            os.truncate(self.path, whole)
        return whole < len(content)


def key(record: Record) -> Key:
    """What makes a record of a run unique."""
    return record.scenario, record.attack, record.update_id, record.position


def finished(records: Iterable[Record], scenario: str, attack: str, *, batch_size: int) -> set[str]:
    """The ids of the updates all of whose `batch_size` images are among `records`, each counted once."""
    images = {key(record) for record in records if (record.scenario, record.attack) == (scenario, attack)}
    done = Counter(update_id for _, _, update_id, _ in images)
    return {update_id for update_id, count in done.items() if count >= batch_size}


def read_records(path: Path) -> list[Record]:
    """Read the whole lines of `records.jsonl`; a missing file is an empty run."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            records.append(Record.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            said = f"{where}: {problem['msg']}" if where else problem["msg"]
            raise RecordError(f"{path}, line {number} is no record ({said}); repair or delete that line.") from error
    return records


class RunFolder:
    """Where a run writes: records, manifest and reconstructions, each whole or not at all.

    Of several processes, one uses `records` and `recover_shares`, and each its own `share`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage(path):
            path.mkdir(parents=True, exist_ok=True)

    @cached_property
    def records(self) -> RecordFile:
        """The records of the run."""
        return RecordFile(self.path / "records.jsonl")

    def share(self, rank: int) -> RecordFile:
        """What process `rank` has recorded and no process has brought into `records` yet."""
        return RecordFile(self.path / f"records.rank{rank}.jsonl")

    def recover_shares(self) -> RecordFile:
        """Bring what a killed run left in shares into the first one and return it; no other process may write yet."""
        first = self.share(0)
        first.discard({key(record) for record in self.records.records})
        for path in sorted(self.path.glob("records.rank*.jsonl")):
            if path != first.path:
                other = RecordFile(path)
                first.append(other.records)
                first.torn |= other.torn
                other.discard({key(record) for record in other.records})
        first.discard({key(record) for record in self.records.records})
        return first

    def save_tensors(self, tensors: dict[str, Tensor], *parts: str) -> None:
        """Write tensors to `parts[0]/.../parts[-1].safetensors` below the folder, atomically."""
        *folders, name = [folder_name(part) for part in parts]
        target = self.path.joinpath(*folders, f"{name}.safetensors")
        write_atomically(
            save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}), target
        )

    def load_tensors(self, *parts: str) -> dict[str, Tensor]:
        """Read what `save_tensors` wrote."""
        *folders, name = [folder_name(part) for part in parts]
        return load_file(self.path.joinpath(*folders, f"{name}.safetensors"))

    def save_manifest(self, manifest: dict[str, Any]) -> None:
        """Write `manifest.json`, atomically."""
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(text.encode(), self.path / "manifest.json")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a run folder, or None where there is none; nothing in the folder is touched."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(
            f"manifest.json is damaged ({error}); move it away and run the same command again."
        ) from error
    if not isinstance(manifest, dict):
        raise RecordError("manifest.json holds no object; move it away and run the same command again.")
    return manifest


def folder_name(name: str) -> str:
    """Turn a name into one path component: letters, digits, '-', '.' and '_' stay, other runs become '_'."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("_")
    return safe if safe.strip(".") else "_" + safe
