"""From a finished run to entries of the leaderboard: `gibench leaderboard add`."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from gibench.errors import ConfigurationError, RecordError
from gibench.report.summary import kind_of
from gibench.runs.manifest import now
from gibench.storage import write_atomically
from leaderboard.agreement import agree
from leaderboard.conversion import Run, pictures_of, tree_of
from leaderboard.reading import parse
from leaderboard.schema import Entry
from leaderboard.store import PRIVATE, Stored, dump, picture_folder, place, validate

_ABOUT = {"title", "family", "fidelity", "citation", "offline_seconds", "offline_what", "note"}


@dataclass(frozen=True)
class Request:
    """What is to be published.

    runs: folders of `gibench run`, finished; several are the same scenarios under other victims (seeds).
    scenarios, attacks: only these, all where empty; name in the run -> name on the board. about: attack in the run ->
        what the page says of it. by: who publishes.
    reason: why what is already published is superseded; None refuses to.
    """

    runs: tuple[Path, ...]
    by: str
    scenarios: Mapping[str, str] = field(default_factory=dict)
    attacks: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Mapping[str, Any]] | None = None
    reason: str | None = None


def read_about(file: Path) -> dict[str, dict[str, Any]]:
    """Read what a submitter says of attacks: attack -> title, family, fidelity, citation, offline cost, note.

    Raises:
        ConfigurationError: for an unknown key, or a file that is no mapping.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read {file}: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict) or not all(isinstance(part, dict) for part in tree.values()):
        raise ConfigurationError(f"{file} must map the name of each attack to what is said of it; see RULES.md.")
    for name, part in tree.items():
        if unknown := set(part) - _ABOUT:
            known = ", ".join(sorted(_ABOUT))
            raise ConfigurationError(f"{file}: {name} has the unknown key {sorted(unknown)[0]!r}; known are {known}.")
    return {str(name): part for name, part in tree.items()}


def add(request: Request, results: Path) -> tuple[list[Path], list[Path]]:
    """Write entries with their pictures; return the new files, and those that were there already and say the same.

    Nothing is written where anything is wrong.

    Raises:
        RecordError: naming what is wrong with a run.
        ConfigurationError: when something else is published already, or the results are invalid.
    """
    runs = [Run(folder) for folder in request.runs]
    names = runs[0].attacks(request.scenarios, request.attacks)
    if not names:
        raise RecordError(f"{request.runs[0]} has no such attack; it has {_listed(runs[0].cells)}.")
    for run in runs[1:]:
        if missing := [name for name in names if name not in run.cells]:
            raise RecordError(f"{run.folder} lacks {' x '.join(missing[0])}; all runs must have the same attacks.")
    present, problems = validate(results) if results.is_dir() else ([], [])
    if problems:
        raise ConfigurationError(f"the results are invalid already; repair them first: {problems[0]}")
    new: list[tuple[Stored, dict[Path, bytes]]] = []
    same: list[Path] = []
    for scenario, attack in names:
        stored, files = _prepare(runs, scenario, attack, request, results, present)
        if files:
            new.append((stored, files))
        else:
            same.append(stored.file)
    problems = agree([*present, *(stored for stored, _ in new)])
    if problems:
        raise ConfigurationError("; ".join(str(problem) for problem in problems[:10]))
    for _, files in new:
        for path, content in files.items():
            if path.exists() and path.read_bytes() != content:
                raise ConfigurationError(f"{path} is there already with other content; results are never edited.")
    for stored, files in new:
        for path, content in files.items():
            write_atomically(content, path)
        write_atomically(dump(stored.entry), stored.file)
    return [stored.file for stored, _ in new], same


def _prepare(
    runs: Sequence[Run], scenario: str, attack: str, request: Request, results: Path, present: Sequence[Stored]
) -> tuple[Stored, dict[Path, bytes]]:
    """Make an entry and its pictures; without pictures where it is published already."""
    about = (request.about or {}).get(attack, {})
    images = [(index, record) for index, run in enumerate(runs) for record in run.images(scenario, attack)]
    shown, content = pictures_of(runs, scenario, attack, images)
    published = request.scenarios.get(scenario, scenario), request.attacks.get(attack, attack)
    tree = tree_of(runs, scenario, attack, images, about, published) | {
        "submission": {"by": request.by, "at": now(), "note": about.get("note")},
        "pictures": shown,
    }
    entry = _checked(tree, scenario, attack)
    last = [each for each in present if each.identity == Stored(Path(), "", entry).identity]
    if last:
        before = max(last, key=lambda each: each.entry.revision)
        if _says(before.entry) == _says(entry):
            return before, {}
        if request.reason is None:
            raise ConfigurationError(
                f"{before.file} holds another result of {scenario} x {attack}; results are never edited. If it is "
                "wrong, supersede it: --supersede REASON."
            )
        replaced = {"revision": before.entry.revision, "sha256": before.sha256, "reason": request.reason}
        tree |= {"revision": before.entry.revision + 1, "supersedes": replaced}
        entry = _checked(tree, scenario, attack)
    file = results.resolve() / place(entry)
    written = dump(entry)
    stored = Stored(file, hashlib.sha256(written).hexdigest(), entry)
    if refused := parse(written, Entry, file).problems:
        raise RecordError("; ".join(str(problem) for problem in refused))
    own, private = picture_folder(file), file.parent / PRIVATE
    files = {own / name: found for name, (found, _) in content.items()}
    files |= {private / name: truth for name, (_, truth) in content.items()}
    return stored, files or {file: written}


def _says(entry: Entry) -> dict[str, Any]:
    """What an entry claims, without who says so and when."""
    tree = entry.model_dump(mode="json")
    return {key: tree[key] for key in tree if key not in ("submission", "supersedes", "revision")}


def _checked(tree: Mapping[str, Any], scenario: str, attack: str) -> Entry:
    try:
        return Entry.model_validate(tree)
    except ValidationError as error:
        said = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False)[:8]]
        raise RecordError(f"{scenario} x {attack} cannot be published: {'; '.join(said)}") from error


def _listed(cells: Mapping[tuple[str, str], Any]) -> str:
    names = [f"{scenario} x {attack}" for scenario, attack in cells if kind_of(attack) == "attack"]
    return ", ".join(names[:12]) or "none"
