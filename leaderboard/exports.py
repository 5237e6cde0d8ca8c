"""The board as flat values, CSV, BibTeX and Markdown: the same numbers wherever they are shown."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gibench.errors import ConfigurationError
from gibench.metrics.intervals import Interval
from gibench.report.words import bounds, percent, signed
from gibench.storage import write_atomically
from leaderboard.rows import FloorRow, Row, Scenario, Section
from leaderboard.schema import Citation
from leaderboard.threat_models import headline

BEGIN, END = "<!-- leaderboard: begin -->", "<!-- leaderboard: end -->"
TOP = 3
IDENTITY = ("data", "threat_model", "scenario", "attack", "kind", "title")


@dataclass(frozen=True)
class Column:
    """A column of the tables: its key, its heading, what it means, its flat columns, and whether it shows at first."""

    key: str
    head: str
    meaning: str
    flat: tuple[str, ...]
    shown: bool = True


def _with_ends(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


COLUMNS = (
    Column("rank", "rank", "1 + how many rows are better beyond noise; rows of one rank are tied", ("rank",)),
    Column("family", "prior", "what the attacker believes of images before any update", ("family",)),
    Column("images", "images", "a row with fewer than 100 has no rank", ("images", "batches")),
    Column("psnr", "PSNR, dB", "mean over images with its 95 % interval over batches", _with_ends("psnr")),
    Column(
        "margin",
        "above floor, dB",
        "paired with the best answer that needs no update, on the same images",
        (*_with_ends("margin"), "floor", "verdict"),
    ),
    Column("behind", "behind best, dB", "paired with the best row on common images", _with_ends("behind"), shown=False),
    Column("median", "median, dB", "median PSNR", ("median",), shown=False),
    Column("success", "recovered, %", "share of images with at least 20 dB", _with_ends("success")),
    Column("exact", "exact, %", "share of images with at least 60 dB", _with_ends("exact")),
    Column("ssim", "SSIM", "mean structural similarity", ("ssim",), shown=False),
    Column("lpips_alex", "LPIPS Alex", "mean perceptual distance, AlexNet", ("lpips_alex",), shown=False),
    Column("lpips_vgg", "LPIPS VGG", "mean perceptual distance, VGG16", ("lpips_vgg",), shown=False),
    Column("labels", "labels, %", "share of the labels that the attack infers", _with_ends("labels")),
    Column(
        "gap", "oracle gap, dB", "gain had the best restart been chosen by the truth", _with_ends("gap"), shown=False
    ),
    Column(
        "control",
        "prior's share, dB",
        "PSNR of the same attack on another client's update",
        _with_ends("control"),
        False,
    ),
    Column("failed", "failed, %", "diverged or refused; they score as the mean image", ("failed",), shown=False),
    Column("gradients", "gradients", "gradient evaluations per image", ("gradients",)),
    Column("seconds", "s / image", "seconds per image on its device", ("seconds",), shown=False),
    Column("offline", "offline, s", "seconds of training before any update", ("offline_seconds",), shown=False),
    Column("memory", "memory, MiB", "peak memory of the process", ("memory_mib",), shown=False),
    Column("device", "device", "device and precision", ("device", "precision"), shown=False),
    Column("fidelity", "fidelity", "whether it was held against the official code (R16)", ("fidelity",), shown=False),
    Column("checked", "verified", "whether somebody ran a sample again from the record alone", ("checked",)),
)
FLAT = (*IDENTITY, *(name for column in COLUMNS for name in column.flat))


def flat(section: Section, scenario: Scenario, row: Row | FloorRow) -> dict[str, str]:
    """A row as texts, six significant digits each; what does not apply is empty."""
    if isinstance(row, FloorRow):
        kind = "oracle" if row.oracle else "floor"
        some: dict[str, object] = {
            "attack": row.name,
            "kind": kind,
            "title": row.name,
            "images": row.images,
            "batches": row.psnr.clusters,
            "median": row.median,
            **_ends("psnr", row.psnr),
            **_ends("success", row.success),
        }
    else:
        entry, first = row.entry, row.entry.runs[0]
        some = {
            "attack": entry.attack.name,
            "kind": "attack",
            "title": entry.attack.title,
            "rank": row.rank,
            "family": entry.attack.family,
            "images": len(entry.images),
            "batches": row.psnr.clusters,
            "floor": row.floor,
            "verdict": row.verdict,
            "offline_seconds": row.offline_seconds,
            "memory_mib": row.peak_memory_bytes / 2**20,
            "device": first.machine.accelerator if first.machine.device.startswith("cuda") else first.machine.device,
            "precision": first.precision,
            "fidelity": entry.attack.fidelity,
            **{name: getattr(row, name) for name in (*_PLAIN, "checked")},
        }
        for name in ("psnr", "margin", "success", "exact", "labels", "gap", "control", "behind"):
            some |= _ends(name, getattr(row, name))
    some |= {"data": scenario.rows[0].entry.data.name, "threat_model": section.name, "scenario": scenario.label}
    return {name: _text(some.get(name)) for name in FLAT}


_PLAIN = ("median", "ssim", "lpips_alex", "lpips_vgg", "failed", "gradients", "seconds")


def flat_rows(sections: Iterable[Section]) -> list[dict[str, str]]:
    """All rows of the board, each scenario's floors behind its attacks."""
    found = []
    for section in sections:
        for scenario in section.scenarios:
            found += [flat(section, scenario, row) for row in scenario.rows]
            found += [flat(section, scenario, floor) for floor in scenario.floors]
    return found


def to_csv(rows: Sequence[dict[str, str]]) -> str:
    """Rows of `flat` as CSV."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FLAT, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def bibtex(citation: Citation) -> str:
    """A citation as a BibTeX entry; its key is the first author, the year and the first long word of the title."""
    fields = {
        "title": f"{{{_for_tex(citation.title)}}}",
        "author": " and ".join(_for_tex(name) for name in citation.authors),
        "year": str(citation.year),
        "booktitle": _for_tex(citation.venue) if citation.venue else "",
        "url": citation.url or "",
    }
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
    return f"@inproceedings{{{bibtex_key(citation)},\n" + ",\n".join(lines) + "\n}\n"


def bibtex_key(citation: Citation) -> str:
    """Letters and digits only."""
    word = next((word for word in re.findall(r"\w+", citation.title) if len(word) > 3), "")
    surname = (citation.authors[0].split() or [""])[-1]
    name = f"{surname}{citation.year}{word}"
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9]", "", plain).lower() or "unnamed"


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def _for_tex(text: str) -> str:
    """Text that TeX typesets as it stands."""
    return "".join(_TEX.get(letter, letter) for letter in text)


def readme_block(sections: Sequence[Section]) -> str:
    """The best rows of each scenario and its best floor, as the README shows them: a table, and the others folded."""
    if not sections:
        return "No result is published yet."
    tables: list[str] = []
    for section in sections:
        lines = [
            "| scenario | attack | n | PSNR, dB | above floor, dB | recovered | labels | verified |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for scenario in section.scenarios:
            best = [row for row in scenario.rows if row.rank is not None] or scenario.rows
            lines += [_markdown(scenario, row) for row in best[:TOP]]
            lines += [_markdown(scenario, floor) for floor in [row for row in scenario.floors if not row.oracle][:1]]
        named, table = headline(section.threat_model), "\n".join(lines)
        folded = f"<details>\n<summary>{named}</summary>\n\n{table}\n\n</details>"
        tables.append(folded if tables else f"**{named}**\n\n{table}")
    return "\n\n".join(tables)


def fill_readme(readme: Path, sections: Sequence[Section]) -> bool:
    """Put the block between its marks; return whether that changed the file.

    Raises:
        ConfigurationError: when the file has not both marks once.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ConfigurationError(f"{readme} needs one line {BEGIN} and below it one line {END}.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    filled = f"{before}{BEGIN}\n{readme_block(sections)}\n{END}{after}"
    if filled != text:
        write_atomically(filled.encode(), readme)
    return filled != text


def _markdown(scenario: Scenario, row: Row | FloorRow) -> str:
    share = f"{percent(row.success.value)} %"
    if isinstance(row, FloorRow):
        cells = [scenario.label, f"floor: {row.name}", f"{row.images:,}", interval(row.psnr), "", share, "", ""]
    else:
        only_labels = row.verdict == "labels only"
        cells = [
            scenario.label,
            row.entry.attack.name,
            f"{len(row.entry.images):,}",
            "" if only_labels else interval(row.psnr),
            row.verdict if row.silent or only_labels else interval(row.margin),
            "" if only_labels else share,
            f"{percent(row.labels.value)} %" if row.labels else "",
            "" if row.checked == "no" else row.checked,
        ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def interval(value: Interval, scale: float = 1.0, digits: int = 1) -> str:
    """Write "16.3 [15.9, 16.7]"."""
    return f"{signed(scale * (value.value or 0.0), digits)} {bounds(value, scale, digits)}".rstrip()


def _ends(name: str, value: Interval | None) -> dict[str, object]:
    ends = (None, None, None) if value is None else (value.value, value.low, value.high)
    return dict(zip(_with_ends(name), ends, strict=True))


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
