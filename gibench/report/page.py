"""`report.html`: one file with everything inside, that opens offline and asks the network for nothing."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from gibench.errors import RecordError
from gibench.records import read_manifest, read_records
from gibench.report import figures, words
from gibench.report.drawing import COLORS
from gibench.report.families import Scene, collect_families
from gibench.report.families_chart import cost_in_words
from gibench.report.gallery import Album, hang
from gibench.report.identifiability import collect_identifiability
from gibench.report.limit import collect_limits, number
from gibench.report.paired import pairs, write_paired_csv
from gibench.report.series import Stage, collect
from gibench.report.summary import Group, Row, group, summarize
from gibench.report.table import reading_order
from gibench.report.traces import collect_traces
from gibench.storage import write_atomically


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not, and return its path.

    Beside it go `paired.csv`, attack against attack, and the figure of each series, `series-NAME.svg`; where updates
    have noise of known strengths, errors against the least ones, too: `limit.csv` and `limit-NAME.svg`; where the suite
    names families of attacks, `families.csv`, `budgets.csv` and `families-SCENARIO.svg`. All is made of
    `records.jsonl`, `identifiability.jsonl`, `manifest.json` and the stored pictures only, so that it can be made again
    at any time.

    Raises:
        RecordError: when the folder holds no run, or its records or manifest are damaged.
        StorageError: when a file cannot be written.
    """
    groups = group(read_records(run_folder / "records.jsonl"))
    manifest = _read_manifest(run_folder)
    success_psnr = float(manifest.get("success_psnr", 20.0))
    records = [record for attacks in groups.values() for found in attacks.values() for record in found.values()]
    place = _order(manifest.get("series", {}))
    rows = reading_order(summarize(records, success_psnr=success_psnr))
    rows.sort(key=lambda row: place.get(row.scenario, len(place)))
    colors = _colors(rows)
    by_scenario = {name: list(members) for name, members in groupby(rows, key=lambda row: row.scenario)}
    paired = {
        name: pairs(members, groups[name], reference=manifest.get("reference")) for name, members in by_scenario.items()
    }
    scenarios = [
        _scenario(run_folder, _cells(manifest, name), groups[name], members, colors, success_psnr)
        | {"pairs": paired[name]}
        for name, members in by_scenario.items()
    ]
    series = [
        collect(
            run_folder,
            name,
            _stages(manifest, entry["scenarios"], by_scenario, groups),
            colors,
            variable=entry["variable"],
            success_psnr=success_psnr,
        )
        for name, entry in manifest.get("series", {}).items()
    ]
    write_paired_csv([pair for found in paired.values() for pair in found], run_folder / "paired.csv")
    scenes = [Scene(name, found, groups[name], _cells(manifest, name)) for name, found in by_scenario.items()]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            manifest=manifest,
            scenarios=scenarios,
            families=collect_families(run_folder, manifest.get("families", {}), scenes),
            series=[found for found in series if found],
            limits=collect_limits(
                run_folder,
                {name: list(entry["scenarios"]) for name, entry in manifest.get("series", {}).items()},
                groups,
                colors,
            ),
            diagnosis=collect_identifiability(run_folder, groups, colors),
            colors=colors,
            success_psnr=success_psnr,
            images=len({record.image_id for record in records}),
            failures=sum(row.failures for row in rows if row.kind == "attack" and row.has_images),
            unavailable={name: why for name, why in manifest.get("metrics", {}).items() if why != "available"},
        )
    )
    return write_atomically(page.encode(), run_folder / "report.html")


def escaping(package: str, folder: str) -> Environment:
    """Templates whose text is somebody else's, and so escaped. A missing variable is an error."""
    return Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _environment() -> Environment:
    environment = escaping("gibench", "report")
    environment.filters |= {
        "amount": words.amount,
        "bounds": words.bounds,
        "cost": cost_in_words,
        "as_decibels": words.error_in_decibels,
        "multiple": words.multiple,
        "noise": number,
        "memory": _memory,
        "decibels": words.decibels,
        "doubt": words.doubt,
        "error": lambda value: f"{value:.4f}" if value >= 0.0001 or value == 0 else f"{value:.0e}",
        "percent": words.percent,
        "plain": lambda name: name.removeprefix("floor: "),
        "signed": words.signed,
        "yaml": lambda value: yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100),
    }
    return environment


def _scenario(
    run_folder: Path,
    cells: Mapping[str, Mapping[str, Any]],
    attacks: dict[str, Group],
    rows: list[Row],
    colors: Mapping[str, str],
    success_psnr: float,
) -> dict[str, Any]:
    """Everything that the template shows of one scenario; `cells` are its attacks in the manifest."""
    shown = figures.attacking(rows)
    tried = figures.tried(rows)
    return {
        "name": rows[0].scenario,
        "finding": words.finding(rows, success_psnr=success_psnr),
        "threat_models": [words.threat_model_in_words(flags) for flags in _distinct(cells, "threat_model")],
        "batch": words.batch(rows),
        "rows": rows,
        "attacking": shown,
        "gallery": hang(Album(run_folder, rows[0].scenario, attacks, rows), success_psnr=success_psnr),
        "dots": figures.dot_plot(rows, attacks, colors, success_psnr=success_psnr) if tried else None,
        "risk": figures.risk_plot(rows, attacks, colors) if tried else None,
        "cost": figures.cost_plot(rows, colors) if tried else None,
        "animations": figures.animations(run_folder, rows, colors),
        "traces": collect_traces(run_folder, rows, colors),
        "cells": cells,
        "offline": {
            row.attack: words.offline(cells[row.attack]["offline"])
            for row in shown
            if row.kind == "attack" and cells.get(row.attack, {}).get("offline")
        },
        "devices": _devices(cells, [row.attack for row in shown]),
        "victims": _distinct(cells, "victim"),
        "data": _distinct(cells, "data"),
    }


def _order(series: Mapping[str, Any]) -> dict[str, int]:
    """The places of the scenarios that belong to a series: by value, where names would put 10 before 2."""
    names = [name for entry in series.values() for name in sorted(entry["scenarios"], key=entry["scenarios"].get)]
    return {name: place for place, name in enumerate(names)}


def _stages(
    manifest: Mapping[str, Any],
    values: Mapping[str, float],
    rows: Mapping[str, Sequence[Row]],
    groups: Mapping[str, dict[str, Group]],
) -> list[Stage]:
    """The scenarios of a series that have records; `values` are those of its variable, by scenario."""
    stages = []
    for name, value in values.items():
        if name in rows:
            victims = _distinct(_cells(manifest, name), "victim")
            accuracy = victims[0].get("test_accuracy") if victims else None
            stages.append(Stage(value, name, rows[name], groups[name], accuracy))
    return stages


def _cells(manifest: Mapping[str, Any], scenario: str) -> dict[str, Mapping[str, Any]]:
    return {cell["attack"]: cell for cell in manifest.get("cells", []) if cell["scenario"] == scenario}


def _devices(cells: Mapping[str, Mapping[str, Any]], attacks: Sequence[str]) -> str:
    """Say where and in what precision the attacks ran; by name where they differ."""
    names: dict[str, list[str]] = {}
    for attack in attacks:
        cell = cells.get(attack, {})
        where = ", ".join(str(cell[field]) for field in ("device", "precision") if cell.get(field))
        names.setdefault(where or "device not recorded", []).append(attack)
    if len(names) == 1:
        return next(iter(names))
    return "; ".join(f"{where}: {words.listing(found)}" for where, found in names.items())


def _distinct(cells: Mapping[str, Mapping[str, Any]], field: str) -> list[Any]:
    """Return the different values of a field of the cells, in order; as a rule there is one."""
    found: list[Any] = []
    for cell in cells.values():
        if cell.get(field) and cell[field] not in found:
            found.append(cell[field])
    return found


def _colors(rows: Sequence[Row]) -> dict[str, str]:
    """Give each attack one color for the whole page."""
    names = sorted({row.attack for row in figures.attacking(rows)})
    return {name: f"c{index % COLORS}" for index, name in enumerate(names)}


def _read_manifest(run_folder: Path) -> dict[str, Any]:
    """Read `manifest.json`; a run that was killed early has records but no manifest yet, and the page says so."""
    manifest = read_manifest(run_folder)
    if manifest is None and not (run_folder / "records.jsonl").exists():
        raise RecordError(f"{run_folder} holds no run; pass a folder with records.jsonl.")
    return manifest or {}


def _memory(size: int | None) -> str:
    """Write bytes in MiB, or nothing where they were not measured."""
    return f"{size / 2**20:,.0f} MiB" if size else "–"
