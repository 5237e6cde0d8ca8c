"""From a comparison of two runs to the panel of rule R14, which says what precisions may be published."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from gibench.errors import ConfigurationError, RecordError
from gibench.precision import REFERENCES, TOLERANCE, Entry, Panel, Source, judge
from gibench.runs.compare import Comparison, RecordedRun, Side
from gibench.storage import write_atomically


def write_panel(
    comparisons: Sequence[Comparison], reference: RecordedRun, other: RecordedRun, path: Path
) -> list[Entry]:
    """Lay the entries of two runs over those in `path`, and return the new ones.

    An entry replaces that of the same precision, device and architecture.

    Raises:
        ConfigurationError: when the precisions are not 32-true and one that needs the panel.
        RecordError: for unfinished cells, cells without interval, two of one architecture, or a damaged `path`.
        StorageError: when `path` cannot be written.
    """
    entries = [_entry(found, reference, other) for found in comparisons]
    keys = [entry.key for entry in entries]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise RecordError(f"two cells attack {twice[0][2]}; the panel takes one attack on each architecture.")
    kept = [entry for entry in _read(path) if entry.key not in keys]
    merged = Panel(panel=tuple(sorted([*kept, *entries], key=lambda entry: entry.key)))
    write_atomically(f"{merged.model_dump_json(indent=2)}\n".encode(), path)
    return entries


def _entry(found: Comparison, reference: RecordedRun, other: RecordedRun) -> Entry:
    where = f"{found.scenario} x {found.attack}"
    if found.reference.precision != "32-true" or found.other.precision in REFERENCES:
        raise ConfigurationError(
            f"{where}: the panel holds a mixed precision against 32-true; these are {found.other.precision} against "
            f"{found.reference.precision}."
        )
    difference = found.difference
    if found.unfinished:
        raise RecordError(f"{where} is unfinished; finish both runs before they enter the panel.")
    if found.architecture is None or difference.value is None or difference.low is None or difference.high is None:
        raise RecordError(f"{where} has no interval or no victim; the panel needs an attack on two updates or more.")
    return Entry(
        precision=found.other.precision,
        device=str(found.other.device).partition(":")[0],
        architecture=found.architecture,
        attack=found.attack,
        images=difference.images,
        updates=difference.clusters,
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        tolerance=TOLERANCE,
        verdict=judge(difference.low, difference.high),
        reference=_source(reference, found.reference),
        other=_source(other, found.other),
    )


def _source(run: RecordedRun, side: Side) -> Source:
    return Source(
        command=run.manifest["command"],
        commit=run.manifest["commit"],
        torch=run.manifest["versions"]["torch"],
        machine=run.manifest["platform"],
        device=str(side.device),
        backend=side.backend,
        psnr=side.psnr,
    )


def _read(path: Path) -> tuple[Entry, ...]:
    if not path.exists():
        return ()
    try:
        return Panel.model_validate_json(path.read_text(encoding="utf-8")).panel
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise RecordError(f"{path} is no panel ({where}: {problem['msg']}); repair it or name another.") from error
