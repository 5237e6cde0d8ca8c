"""The README's table is what the suite wrote, to the digit."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from gibench.precision import panel

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "docs" / "results"
VERDICTS = {"no leak measured": "no leak measured", "leak in part": "in part", "leak": "yes", "refused": "refused"}


def markdown(path: Path) -> list[str]:
    """What the README shows of `summary.csv`: attacks and controls, and the best floor of each scenario."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    lines = []
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        members = [row for row in rows if row["scenario"] == scenario]
        floors = [row for row in members if row["kind"] == "floor" and "prior alone" not in row["attack"]]
        attacks = sorted(
            (row for row in members if row["kind"] in ("attack", "control")), key=lambda row: -float(row["psnr"])
        )
        lines += [line(row) for row in [*attacks, max(floors, key=lambda row: float(row["psnr"]))]]
    return lines


def line(row: dict[str, str]) -> str:
    low, mean, high = (float(row[name]) for name in ("psnr_low", "psnr", "psnr_high"))
    labels = f"{100 * float(row['label_accuracy']):.0f} %" if row["label_accuracy"] else ""
    cells = (
        row["scenario"],
        row["attack"],
        row["images"],
        f"{mean:.1f} [{low:.1f}, {high:.1f}]",
        f"{float(row['psnr_median']):.1f}",
        f"{100 * float(row['success']):.0f} %",
        labels,
        VERDICTS.get(row["verdict"], ""),
    )
    return "| " + " | ".join(cells) + " |"


def test_the_readme_shows_what_the_suite_wrote() -> None:
    readme = (REPOSITORY / "README.md").read_text().splitlines()
    for expected in markdown(RESULTS / "first-small.csv"):
        assert expected in readme


def test_the_published_run_says_how_it_was_made() -> None:
    manifest = json.loads((RESULTS / "first-small.json").read_text())
    assert manifest["command"] == "gibench run configs/suites/first.yaml --size small"
    assert manifest["finished"]
    assert manifest["commit"]
    assert "dirty" not in manifest["commit"]
    assert all(cell["victim"]["weights_sha256"] and cell["data"]["split_hashes"] for cell in manifest["cells"])


def speed(case: str, entry: dict[str, Any]) -> str:
    """What the README shows of one entry of a benchmark."""
    cells = (
        case.split(",")[0],
        str(entry["batch_size"]),
        f"{entry['rows']} restarts" if entry["restarts"] > 1 else f"{entry['rows']} updates",
        f"{entry['rate']:,.0f}" if entry["rate"] >= 100 else f"{entry['rate']:.1f}",
        f"{entry['peer_rate']:,.0f}" if entry["peer_rate"] >= 100 else f"{entry['peer_rate']:.1f}",
        f"{entry['ratio']:.1f}",
        entry["backend"],
        f"{entry['gflops']:,.0f}",
        f"{entry['peak_memory_gib']:.1f}",
    )
    return "| " + " | ".join(cells) + " |"


@pytest.mark.parametrize("name", ["engine", "engine-compiled"])
def test_the_readme_shows_what_the_benchmarks_wrote(name: str) -> None:
    readme = (REPOSITORY / "README.md").read_text().splitlines()
    result = json.loads((RESULTS / f"{name}.json").read_text())
    for case, entry in result["cases"].items():
        assert speed(case, entry) in readme


def test_the_documentation_shows_the_panel() -> None:
    text = (REPOSITORY / "docs" / "engine.md").read_text()
    assert panel()
    for entry in panel():
        numbers = f"{entry.reference.psnr:.1f} | {entry.other.psnr:.1f} | {entry.difference:.1f} "
        interval = f"[{entry.low:.1f}, {entry.high:.1f}] | {entry.verdict} |"
        assert numbers + interval in text
