"""`identifiability.csv`: what the diagnosis foretold of each update, beside what each attack reached on it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gibench.diagnostics import Identifiability
from gibench.report.csv_file import Cell, write_csv

if TYPE_CHECKING:
    from gibench.report.identifiability import Point

COLUMNS = (
    "scenario",
    "update",
    "attack",
    "directions",
    "without_trace",
    "condition",
    "noise",
    "least_mse_psnr",
    "psnr",
)


def write_foretold_csv(points: Mapping[str, Sequence["Point"]], path: Path) -> None:
    """Write one line per update, attack and assumed noise (in units of the update's RMS entry), in dB.

    Raises:
        StorageError: when the file cannot be written.
    """
    lines = [
        line for attack, found in points.items() for point in found for line in _lines(attack, point.found, point.psnr)
    ]
    write_csv(COLUMNS, lines, path)


def _lines(attack: str, found: Identifiability, psnr: float) -> list[dict[str, Cell]]:
    return [
        {
            "scenario": found.scenario,
            "update": found.update_id,
            "attack": attack,
            "directions": found.unknowns,
            "without_trace": found.null_directions,
            "condition": found.condition,
            "noise": floor.relative,
            "least_mse_psnr": floor.psnr,
            "psnr": psnr,
        }
        for floor in found.floors
    ]
