"""Two runs compared image by image: two precisions (rule R14), back ends, versions or machines."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gibench.errors import RecordError
from gibench.metrics.intervals import Interval, paired_difference
from gibench.records import read_manifest, read_records
from gibench.report.summary import Group, group, kind_of
from gibench.report.words import bounds, signed
from gibench.storage import write_atomically
from gibench.types import Record

# The fingerprint says more of the victim than the configuration does; results depend on neither of the others.
_NOT_COMPARED = {"victim", "engine", "updates"}


@dataclass(frozen=True, kw_only=True)
class Side:
    """A cell of one run, over the images that both runs have.

    recorded: images of the cell in this run. psnr: mean in dB. seconds: mean per image. device, backend: None where
    nothing was computed.
    """

    recorded: int
    psnr: float
    seconds: float
    precision: str
    device: str | None
    backend: str | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A cell in two runs.

    difference: PSNR of the other minus that of the reference, paired by image, in dB. speed: how many times as fast the
    other is; None where no time was taken. notes: what a reader must know; unfinished: images are missing in a run.
    """

    scenario: str
    attack: str
    architecture: str | None
    reference: Side
    other: Side
    difference: Interval
    speed: float | None
    unfinished: bool
    notes: tuple[str, ...]


class RecordedRun:
    """A run folder, finished or not, for reading.

    Args:
        folder: of `gibench run`.

    Raises:
        RecordError: when the folder holds no run, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.groups = group(read_records(folder / "records.jsonl"))
        manifest = read_manifest(folder)
        if manifest is None or not self.groups:
            raise RecordError(f"{folder} holds no run with records; pass the folder that `gibench run` wrote (--out).")
        self.manifest: dict[str, Any] = manifest
        self.cells = {(cell["scenario"], cell["attack"]): cell for cell in manifest["cells"]}

    def names(self) -> list[tuple[str, str]]:
        """(scenario, attack) of all that is recorded."""
        return [(scenario, attack) for scenario, attacks in self.groups.items() for attack in attacks]


def compare(reference: RecordedRun, other: RecordedRun) -> list[Comparison]:
    """Compare the attacks that both runs have; floors and controls only where there is no attack.

    Raises:
        RecordError: when nothing is in both, or a cell differs in its images, data, victim or settings.
    """
    both = [name for name in reference.names() if name in set(other.names())]
    if not both:
        raise RecordError(f"{reference.folder} and {other.folder} have no attack on a scenario in common.")
    attacks = [name for name in both if kind_of(name[1]) == "attack"]
    return [_compare(reference, other, *name) for name in attacks or both]


def unpaired(reference: RecordedRun, other: RecordedRun) -> list[str]:
    """Say in a line each which attacks only one of the runs has."""
    lines = []
    for run, against in ((reference, other), (other, reference)):
        missing = set(run.names()) - set(against.names())
        lines += [f"{scenario} x {attack}: only in {run.folder}." for scenario, attack in sorted(missing)]
    return lines


def _compare(reference: RecordedRun, other: RecordedRun, scenario: str, attack: str) -> Comparison:
    where = f"{scenario} x {attack}"
    runs = (reference, other)
    cells = [run.cells.get((scenario, attack)) for run in runs]
    images = [run.groups[scenario][attack] for run in runs]
    notes = [f"{where}: {line}" for line in _check_settings(where, cells, attack)]
    common = sorted(images[0].keys() & images[1].keys())
    if not common or any(images[0][key].image_id != images[1][key].image_id for key in common):
        raise RecordError(f"{where}: the two runs attack different images; run both with the same data and seed.")
    expected = max([_expected(cell) for cell in cells] + [len(images[0].keys() | images[1].keys())])
    unfinished = len(common) < expected
    if unfinished:
        counts = " and ".join(str(len(found)) for found in images)
        notes.append(f"{where}: unfinished; {counts} of {expected} images are recorded, {len(common)} are compared.")
    sides = [_side(found, common, cell) for found, cell in zip(images, cells, strict=True)]
    timed = sides[0].seconds > 0 and sides[1].seconds > 0
    return Comparison(
        scenario=scenario,
        attack=attack,
        architecture=cells[0]["victim"]["architecture"] if cells[0] else None,
        reference=sides[0],
        other=sides[1],
        difference=paired_difference(*({key: found[key].psnr for key in common} for found in reversed(images))),
        speed=sides[0].seconds / sides[1].seconds if timed else None,
        unfinished=unfinished,
        notes=tuple(notes),
    )


def _check_settings(where: str, cells: Sequence[dict[str, Any] | None], attack: str) -> list[str]:
    """Raise RecordError where the cells differ, and say which settings one version alone has; floors have no cell."""
    first, second = cells
    if first is None or second is None:
        if kind_of(attack) in ("attack", "control"):
            raise RecordError(f"{where}: a manifest does not describe it; run the command of that run again.")
        return []
    notes = []
    for part, advice in (
        ("data", "attack the same images"),
        ("victim", "attack the same victim"),
        ("threat_model", "grant the same"),
        ("configuration", "run both with the same settings"),
    ):
        trees = [cell[part] for cell in (first, second)]
        if part == "configuration":  # of the data, the description says more than the configuration does
            trees = [{name: tree[name] for name in ("client", "attack")} for tree in trees]
        for path, differs in _differences(*trees):
            if differs:
                raise RecordError(f"{where}: the two runs differ in {part}: {path}; {advice}.")
            notes.append(f"only one run knows {path}; the versions of gibench differ.")
    return notes


def _differences(first: Any, second: Any, path: str = "") -> Iterator[tuple[str, bool]]:  # noqa: ANN401 - JSON values
    """Paths at which two trees differ: (path, True), or (path, False) where only one of them has it."""
    if not (isinstance(first, Mapping) and isinstance(second, Mapping)):
        if first != second:
            yield path or "all of it", True
        return
    for name in sorted(first.keys() | second.keys()):
        inner = f"{path}.{name}" if path else name
        if name in _NOT_COMPARED and not path.endswith("threat_model"):
            continue
        if name in first and name in second:
            yield from _differences(first[name], second[name], inner)
        else:
            yield inner, False


def _expected(cell: dict[str, Any] | None) -> int:
    return int(cell["data"]["updates"] * cell["data"]["batch_size"]) if cell else 0


def _side(images: Group, common: Sequence[tuple[str, str]], cell: dict[str, Any] | None) -> Side:
    records = [images[key] for key in common]
    return Side(
        recorded=len(images),
        psnr=statistics.fmean(record.psnr for record in records),
        seconds=statistics.fmean(record.seconds for record in records),
        precision=str(cell["precision"]) if cell else records[0].precision,
        device=cell["device"] if cell else None,
        backend=_backends(records),
    )


def _backends(records: Sequence[Record]) -> str | None:
    return ", ".join(sorted({record.backend for record in records if record.backend})) or None


def print_comparison(comparisons: Sequence[Comparison], console: Console, notes: Sequence[str] = ()) -> None:
    """Print one row per cell, at most 100 columns wide, and below it the notes of each and those given."""
    table = Table(box=None, padding=(0, 1, 0, 0), width=min(100, console.width))
    table.add_column(Text("scenario", "dim"), ratio=2, overflow="fold")
    table.add_column(Text("attack", "dim"), ratio=2, overflow="fold")
    table.add_column(Text("n", "dim"), justify="right")
    for name in ("reference, dB", "other, dB"):
        table.add_column(Text(name, "dim"), ratio=2, overflow="fold")
    table.add_column(Text("difference, dB", "dim"), justify="right", min_width=20)
    table.add_column(Text("speed", "dim"), justify="right", min_width=5)
    for found in comparisons:
        difference = found.difference
        table.add_row(
            Text(found.scenario),
            Text(found.attack),
            Text(f"{difference.images:,}"),
            _in_words(found.reference),
            _in_words(found.other),
            Text(f"{signed(difference.value or 0.0, 2)} {bounds(difference, digits=2)}".strip()),
            Text(f"{found.speed:.2f}×" if found.speed else "–"),
        )
    console.print(table)
    console.print(
        "difference: other minus reference on the same images; brackets: 95 % over updates. speed: how many times as "
        "fast the other is.",
        style="dim",
        markup=False,
        width=min(100, console.width),
    )
    for note in [*(note for found in comparisons for note in found.notes), *notes]:
        console.print(note, style="yellow", markup=False, soft_wrap=True)


def _in_words(side: Side) -> Text:
    where = ", ".join(part for part in (side.precision, side.device, side.backend) if part)
    return Text.assemble(f"{signed(side.psnr, 2)}\n", (where, "dim"))


def write_comparison(comparisons: Sequence[Comparison], path: Path) -> Path:
    """Write the comparisons as JSON and return the path."""
    text = json.dumps({"comparisons": [asdict(found) for found in comparisons]}, indent=2, ensure_ascii=False)
    return write_atomically(f"{text}\n".encode(), path)
