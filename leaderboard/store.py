"""The folder of results: where each entry lies, which revision counts, and what files must agree on."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gibench.types import ThreatModel
from leaderboard import pictures
from leaderboard.agreement import agree
from leaderboard.reading import Problem, read
from leaderboard.schema import Entry, Image
from leaderboard.verifications import Verifications

RESULTS = Path(__file__).parent / "results"
PRIVATE = "private"
_FILE = re.compile(r"(?P<attack>[A-Za-z0-9][A-Za-z0-9_-]*?)(?:\.r(?P<revision>[0-9]{1,3}))?\.json")
_DEFAULTS = {name: field.default for name, field in ThreatModel.model_fields.items() if not field.is_required()}


@dataclass(frozen=True)
class Stored:
    """An entry with its file, the SHA-256 of that, and what others confirmed of it."""

    file: Path
    sha256: str
    entry: Entry
    verifications: Verifications | None = None

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """Data, threat model, scenario and attack: what one row is of."""
        return self.entry.data.name, slug(self.entry.threat_model), self.entry.scenario, self.entry.attack.name

    @property
    def name(self) -> str:
        """A name for files and addresses."""
        return "--".join(self.identity)


def slug(threat_model: ThreatModel) -> str:
    """Name a threat model by its stage, BatchNorm, labels, and what else differs from the defaults."""
    flags = threat_model.model_dump()
    parts = [flags.pop("victim"), f"bn-{flags.pop('batch_norm')}", f"labels-{flags.pop('labels')}"]
    parts += [f"{flag}-{value}" for flag, value in flags.items() if value != _DEFAULTS[flag]]
    return "_".join(part.replace("_", "-") for part in parts)


def place(entry: Entry) -> PurePosixPath:
    """Where an entry lies below the results: data / threat model / scenario / attack.json."""
    revision = f".r{entry.revision}" if entry.revision > 1 else ""
    folder = PurePosixPath(entry.data.name, slug(entry.threat_model), entry.scenario)
    return folder / f"{entry.attack.name}{revision}.json"


def picture_folder(file: Path) -> Path:
    """The folder of an entry's pictures: its file without the ending."""
    return file.with_suffix("")


def verifications_of(file: Path) -> Path:
    """The file that says what is confirmed of an entry."""
    return file.with_suffix(".verified.json")


def files(results: Path) -> list[Path]:
    """All files of entries below `results`, in order; links are not followed."""
    found = []
    for folder, folders, names in os.walk(results, followlinks=False):
        folders.sort()
        found += [Path(folder, name) for name in names if name.endswith(".json") and not _is_verification(name)]
    return sorted(found)


def validate(results: Path, only: Sequence[Path] = ()) -> tuple[list[Stored], list[Problem]]:
    """Read and check entries with their pictures; every problem is named, none stops the check.

    Args:
        results: the folder; a file elsewhere is checked alone, without its place.
        only: the files to complain about, all of them where empty; what they must agree with is read, too.
    """
    root = results.resolve()
    wanted = [file.resolve() for file in only] or files(root)
    inside = [file for file in wanted if file.is_relative_to(root)]
    read_files = dict.fromkeys([*wanted, *(files(root) if inside else ())])
    problems: list[Problem] = []
    stored: list[Stored] = []
    for file in read_files:
        found, wrong = _read(file, root if file.is_relative_to(root) else None)
        problems += wrong
        stored += [found] if found else []
    problems += agree([each for each in stored if each.file.is_relative_to(root)])
    if not only:
        problems += _strangers(root, stored)
    if only:
        problems = [each for each in problems if each.file in wanted]
        stored = [each for each in stored if each.file in wanted]
    return stored, sorted(set(problems))


def current(stored: Iterable[Stored]) -> list[Stored]:
    """The last revision of each entry, in order of place."""
    last: dict[tuple[str, str, str, str], Stored] = {}
    for each in stored:
        if each.identity not in last or each.entry.revision > last[each.identity].entry.revision:
            last[each.identity] = each
    return [last[identity] for identity in sorted(last)]


def dump(entry: Entry | Verifications) -> bytes:
    """Write an entry with one image on each line, so that differences can be read; the same bytes each time."""
    tree = entry.model_dump(mode="json")
    return (_write(tree, 0) + "\n").encode()


def _read(file: Path, root: Path | None) -> tuple[Stored | None, list[Problem]]:
    found = read(file, Entry)
    if found.content is None:
        return None, found.problems
    entry: Entry = found.content
    problems = []
    if root is not None and (expected := place(entry)) != PurePosixPath(file.relative_to(root).as_posix()):
        problems.append(Problem(file, "", f"lies in the wrong place; what it says belongs to {expected}"))
    problems += _check_pictures(file, entry)
    confirmed = None
    if verifications_of(file).exists():
        second = read(verifications_of(file), Verifications)
        problems += second.problems
        confirmed = second.content
        if confirmed and confirmed.entry_sha256 != found.sha256:
            problems.append(
                Problem(verifications_of(file), "entry_sha256", f"is of another {file.name}: an entry is never edited")
            )
            confirmed = None
    return Stored(file, found.sha256, entry, confirmed), problems


def _check_pictures(file: Path, entry: Entry) -> list[Problem]:
    problems, folder, private = [], picture_folder(file), file.parent / PRIVATE
    for row, picture in enumerate(entry.pictures):
        for where, sha256 in ((folder, picture.sha256), (private, picture.private_sha256)):
            if where.is_symlink():
                problems.append(Problem(file, f"pictures.{row}", f"{where.name} is a link"))
            elif said := pictures.complaint(where / picture.file, entry.data.image_shape, sha256):
                problems.append(Problem(file, f"pictures.{row}", f"{where.name}/{picture.file} {said}"))
    if problems or entry.data.image_shape[0] not in (1, 3):
        return problems
    for row, picture in enumerate(entry.pictures):
        image = entry.images[picture.image]
        if said := rescored(image, folder / picture.file, private / picture.file):
            problems.append(Problem(file, f"pictures.{row}", said))
    return problems


def rescored(image: Image, found: Path, private: Path) -> str | None:
    """Say where a stored picture cannot be the reconstruction that was scored, or None.

    Rounding to 8 bits moves the RMS error by at most half a step for each of the two pictures (triangle inequality).
    """
    if image.status == "labels":
        return None
    mse = squared_error(found, private)
    if abs(mse**0.5 - image.mse**0.5) > 2 * pictures.ROUNDING + 1e-6:
        return f"{found.name} has an RMS error of {mse**0.5:.4f}, the record says {image.mse**0.5:.4f}"
    return None


def squared_error(found: Path, private: Path) -> float:
    """Mean squared error of two stored pictures."""
    return float(((pictures.pixels(found) - pictures.pixels(private)) ** 2).mean())


def _strangers(root: Path, stored: Sequence[Stored]) -> list[Problem]:
    """Files below the results that belong to no entry, and links, which could lead out of the folder."""
    problems = []
    entries = files(root)
    owned = {path for file in entries for path in (file, verifications_of(file))}
    for each in stored:
        for picture in each.entry.pictures:
            owned |= {picture_folder(each.file) / picture.file, each.file.parent / PRIVATE / picture.file}
    unread = {file.parent for file in entries} - {each.file.parent for each in stored}
    unread |= {file.parent for file in set(entries) - {each.file for each in stored}}
    for folder, names, found in os.walk(root, followlinks=False):
        for name in sorted([*names, *found]):
            path = Path(folder, name)
            if path.is_symlink():
                problems.append(Problem(path, "", "is a link; results are plain files"))
            elif name in names or (path.parent == root and name.startswith((".git", "README"))):
                continue
            elif name.endswith(".json") and not _is_verification(name) and not _FILE.fullmatch(name):
                problems.append(Problem(path, "", "has no name of an entry: attack.json or attack.r2.json"))
            elif path not in owned and not (name.endswith(".png") and path.parents[1] in unread):
                problems.append(Problem(path, "", "belongs to no entry; remove it"))
    return problems


def _is_verification(name: str) -> bool:
    return name.endswith(".verified.json")


def _write(node: Any, depth: int) -> str:  # noqa: ANN401 - any JSON value
    """JSON with two spaces for each level, but flat objects and lists of numbers on one line."""
    if depth > 1 and _is_flat(node):
        return json.dumps(node, ensure_ascii=False, allow_nan=False)
    pad = "  " * (depth + 1)
    if isinstance(node, dict) and node:
        inner = [
            f"{pad}{json.dumps(key, ensure_ascii=False)}: {_write(value, depth + 1)}" for key, value in node.items()
        ]
        return "{\n" + ",\n".join(inner) + f"\n{'  ' * depth}}}"
    if isinstance(node, list) and node:
        return "[\n" + ",\n".join(pad + _write(value, depth + 1) for value in node) + f"\n{'  ' * depth}]"
    return json.dumps(node, ensure_ascii=False, allow_nan=False)


def _is_flat(node: Any) -> bool:  # noqa: ANN401 - any JSON value
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return not any(isinstance(value, dict | list) for value in values)
