"""The summary as a table in the terminal."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gibench.report.summary import Row
from gibench.report.words import amount, bounds, decibels, doubt, percent, signed

_COLUMNS = {"n": 5, "PSNR, dB": 20, "above": 7, "SSIM": 4, "recovered, %": 13, "labels": 6, "grads": 6, "s": 5}
_ORDER = {"attack": 0, "control": 1, "floor": 2, "oracle": 3}
_DOUBT = " †"
_VERDICTS = {
    "no leak measured": "no leak",
    "leak in part": "in part",
    "too few updates": "too few",
    "refused": "refused",
    "labels only": "labels",
}


def reading_order(rows: Sequence[Row]) -> list[Row]:
    """Sort by scenario; within it attacks, controls, floors, oracles, each from the highest PSNR to the lowest."""
    return sorted(rows, key=lambda row: (row.scenario, _ORDER[row.kind], -(row.psnr.value or 0.0), row.attack))


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Print one table per scenario, at most 100 columns wide: attacks above, floors dimmed below.

    Bold: no attack of the scenario is better beyond noise. Yellow: the attack refused, or does not clear its floor.
    """
    width = min(100, console.width)
    for scenario, members in groupby(reading_order(rows), key=lambda row: row.scenario):
        table = Table(title=Text(scenario, "bold"), title_justify="left", box=None, padding=(0, 1, 0, 0), width=width)
        table.add_column(Text("attack", "dim"), ratio=1, overflow="fold")
        for name, characters in _COLUMNS.items():
            table.add_column(Text(name, "dim"), justify="right", min_width=characters, max_width=characters)
        for row in members:
            table.add_row(*_cells(row), style=_style(row))
        console.print(table)
        console.print()
    console.print(
        "Brackets: 95 % over updates. above: dB over the best floor on the same images; no leak where that is within "
        "noise; refused: scored as the mean image. labels: % inferred. grads, s: gradient evaluations and seconds "
        "per image.",
        style="dim",
        markup=False,
        width=width,
    )
    if doubts := sorted({said for row in rows if (said := doubt(row))}):
        console.print(f"{_DOUBT.strip()} {'; '.join(doubts)} (rule R14).", style="yellow", markup=False, width=width)


def _cells(row: Row) -> list[Text]:
    above = "" if row.margin is None or row.margin.value is None else f"{row.margin.value:+.1f}".replace("-", "−")
    success = percent(row.success.value)
    given_update = row.kind in ("attack", "control")
    return [
        Text(row.attack.removeprefix("floor: ") + (_DOUBT if doubt(row) else "")),
        Text(f"{row.images:,}"),
        Text(decibels(row.psnr)),
        Text(_VERDICTS.get(row.verdict or "", above)),
        Text("" if row.ssim is None else signed(row.ssim, 2)),
        Text(f"{success} {bounds(row.success, scale=100, digits=0)}".strip()),
        Text(percent(row.label_accuracy.value) if given_update and row.label_accuracy is not None else ""),
        Text(amount(row.gradient_evaluations) if given_update else ""),
        Text(amount(row.seconds) if given_update else ""),
    ]


def _style(row: Row) -> str:
    if row.kind != "attack":
        return "dim"
    if row.verdict == "no leak measured" or not row.has_images:
        return "yellow"
    return "bold" if row.leads else ""
