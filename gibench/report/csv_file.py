"""Tables on disk: the same bytes for the same records, on any machine."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from gibench.storage import write_atomically

Cell = str | float | bool | None


def write_csv(columns: Sequence[str], lines: Sequence[Mapping[str, Cell]], path: Path) -> None:
    """Write one line per mapping; what is missing stays empty.

    Raises:
        StorageError: when the file cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(line[column]) for column in columns] for line in lines)
    write_atomically(text.getvalue().encode(), path)


def _cell(value: Cell) -> str:
    """Six significant digits: more would not survive another machine's order of summation."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)
