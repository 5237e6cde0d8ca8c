"""The static page: files in a folder that open from the disk, need no network, and are the same each time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from gibench.errors import ConfigurationError, RecordError
from gibench.storage import storage
from leaderboard import charts, html, pictures
from leaderboard.album import comparison, gallery, pairs_of
from leaderboard.board import board, clusters, negated, scores, yardstick_interval
from leaderboard.exports import COLUMNS, FLAT, IDENTITY, bibtex, bibtex_key, flat, flat_rows, to_csv
from leaderboard.rows import COLORS, Row, Scenario, Section
from leaderboard.schema import LEAST_IMAGES, Family, json_schema
from leaderboard.statistics import mean
from leaderboard.store import Stored, place, validate

MARK = ".gibench-leaderboard"
"""A folder that holds this file was written by `build`, and may be emptied by it."""
_TEXTS = (*IDENTITY, "family", "floor", "verdict", "device", "precision", "fidelity", "checked")
_MEANINGS: dict[Family, str] = {
    "none": "no belief",
    "handcrafted": "smoothness, norms",
    "statistics": "statistics of BatchNorm",
    "density": "a density fitted to other images",
    "generative": "the range of a generator",
    "learned inverter": "an inverter trained on pairs",
    "closed form": "solves, and needs no belief",
}
_FIDELITY = {
    "verified": "verified: held against the official code on the same weights and images (R16)",
    "unverified": "unverified: implemented again and not yet held against the official code (R16)",
    "own": "own: there is no other implementation",
}


class Site:
    """The pages of one set of results.

    Args:
        stored: all valid entries, earlier revisions included.
    """

    def __init__(self, stored: Sequence[Stored]) -> None:
        self.sections = board(stored)
        self.files: dict[str, bytes] = {}
        self._pictures: dict[str, str] = {}
        self.environment = html.environment()
        self.style = html.style()
        self.theme = html.asset("theme.js")

    def render(self) -> dict[str, bytes]:
        """Path below the folder -> content, of every file."""
        for section in self.sections:
            for scenario in section.scenarios:
                for row in scenario.rows:
                    self._row_page(section, scenario, row)
                    self.files[f"entries/{row.name}.json"] = row.stored.file.read_bytes()
                if len(scenario.comparable) > 1:
                    self._compare_page(section, scenario)
        self.index()
        self._families()
        markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        rules = markdown.render(html.rules())
        self._page("rules.html", "rules.html.j2", page="rules", rules=Markup(rules))  # noqa: S704 - escaped by it
        rows = flat_rows(self.sections)
        self.files["leaderboard.csv"] = to_csv(rows).encode()
        self.files["leaderboard.json"] = (json.dumps([_typed(row) for row in rows], indent=1) + "\n").encode()
        self.files["leaderboard.bib"] = "\n".join(self._bibliography()[1].values()).encode()
        self.files["entry.schema.json"] = schema_text().encode()
        self.files[MARK] = b"Written by `gibench leaderboard build`; everything here is replaced by the next one.\n"
        return self.files

    def _page(self, path: str, template: str, *, script: str = "", **values: Any) -> None:  # noqa: ANN401
        """Render one page; its policy allows its own scripts and styles, by their hashes, and pictures."""
        root = "../" * path.count("/")
        hashes = " ".join(html.source(each) for each in (self.theme, script) if each)
        policy = (
            f"default-src 'none'; script-src {hashes}; style-src {html.source(self.style)}; "
            "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
        )
        text = self.environment.get_template(template).render(
            root=root,
            policy=policy,
            style=Markup(self.style),  # noqa: S704 - our own file
            theme=Markup(self.theme),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            **{"page": "", **values},
        )
        self.files[path] = text.encode()

    def index(self) -> bytes:
        """Render the page of the tables, and return it."""
        rows = [row for section in self.sections for scenario in section.scenarios for row in scenario.rows]
        scenarios = sum(len(section.scenarios) for section in self.sections)
        values: dict[str, list[str]] = {}
        for section in self.sections:
            for scenario in section.scenarios:
                for row in scenario.rows:
                    cells = flat(section, scenario, row)
                    values[row.name] = [cells[name] for name in FLAT]
                for place_, floor in enumerate(scenario.floors, start=1):
                    cells = flat(section, scenario, floor)
                    values[f"{scenario.name}--floor-{place_}"] = [cells[name] for name in FLAT]
        cited, texts = self._bibliography()
        data = {
            "columns": [{"key": c.key, "head": c.head, "flat": c.flat, "shown": c.shown} for c in COLUMNS],
            "flat": FLAT,
            "identity": IDENTITY,
            "texts": _TEXTS,
            "rows": values,
            "cited": cited,
            "bibtex": texts,
        }
        verified = sum(row.checked in ("image by image", "on average") for row in rows)
        facts = [
            _count(len(rows), "row"),
            _count(scenarios, "scenario"),
            _count(len(self.sections), "threat model"),
            f"{sum(len(row.entry.images) for row in rows):,} reconstructions scored",
            f"{verified} verified by a re-run",
        ]
        self._page(
            "index.html",
            "index.html.j2",
            page="index",
            script=html.asset("board.js"),
            sections=self.sections,
            facts=facts if rows else [],
            columns=COLUMNS,
            choices={
                "data": sorted({row.entry.data.name for row in rows}),
                "family": [name for name in COLORS if any(row.entry.attack.family == name for row in rows)],
            },
            board_json=html.in_script(data),
        )
        return self.files["index.html"]

    def _bibliography(self) -> tuple[dict[str, str], dict[str, str]]:
        """Row -> key, and key -> BibTeX entry; of two works that would have one key the second gets another."""
        cited: dict[str, str] = {}
        texts: dict[str, str] = {}
        for section in self.sections:
            for scenario in section.scenarios:
                for row in scenario.rows:
                    if (citation := row.entry.attack.citation) is None:
                        continue
                    key, text = bibtex_key(citation), bibtex(citation)
                    taken = 1
                    while texts.setdefault(key, text) != text:
                        taken += 1
                        key = f"{bibtex_key(citation)}{taken}"
                        text = bibtex(citation).replace(f"{{{bibtex_key(citation)},", f"{{{key},", 1)
                    cited[row.name] = key
        return cited, dict(sorted(texts.items()))

    def _row_page(self, section: Section, scenario: Scenario, row: Row) -> None:
        entry, shown = row.entry, row.verdict not in ("refused", "labels only")
        group = clusters(entry)
        psnr = scores(entry)
        yardsticks = {**entry.floors, **entry.controls}
        against = [
            (
                name,
                yardstick_interval(entry, values),
                mean([a - b for a, b in zip(psnr.values(), values.psnr, strict=True)], group),
            )
            for name, values in yardsticks.items()
        ]
        own = scenario.rows.index(row)
        others = [
            (other, scenario.pairs[own, index] if own < index else negated(scenario.pairs[index, own]))
            for index, other in enumerate(scenario.rows)
            if index != own and other.answers_images
        ]
        self._page(
            f"rows/{row.name}.html",
            "row.html.j2",
            section=section,
            scenario=scenario,
            row=row,
            images=len(entry.images),
            least=LEAST_IMAGES,
            fixed=pictures.FIXED,
            crossed=group.crossed,
            gallery=gallery(row, self._picture),
            dots=charts.dots(row) if shown else None,
            risk=charts.risk_chart(row) if shown else None,
            against=sorted(against, key=lambda item: -(item[1].value or 0.0)) if shown else [],
            others=others if shown else [],
            fidelity=_FIDELITY,
            record=f"leaderboard/results/{place(entry)}",
            verifications=row.stored.verifications.verifications if row.stored.verifications else (),
        )

    def _picture(self, source: Path) -> str:
        """Take a picture in under the hash of its content, and return its path."""
        known = self._pictures.get(str(source))
        if known is None:
            content = source.read_bytes()
            known = f"pictures/{pictures.digest(content)[:24]}.png"
            self._pictures[str(source)] = known
            self.files[known] = content
        return known

    def _compare_page(self, section: Section, scenario: Scenario) -> None:
        self._page(
            f"compare/{scenario.name}.html",
            "compare.html.j2",
            script=html.asset("compare.js"),
            section=section,
            scenario=scenario,
            rows=scenario.comparable,
            pairs=pairs_of(scenario),
            pairs_json=html.in_script(comparison(scenario, self._picture)),
        )

    def _families(self) -> None:
        lines = []
        for section in self.sections:
            for scenario in section.scenarios:
                shown = scenario.comparable
                floors = [floor for floor in scenario.floors if not floor.oracle]
                if not shown or not floors:
                    continue
                best = [next((row for row in shown if row.entry.attack.family == name), None) for name in _MEANINGS]
                chart = charts.families(shown, floors[0])
                told = {"section": section, "scenario": scenario, "best": best}
                lines.append(told | {"floor": floors[0], "chart": chart, "shown": shown})
        self._page("families.html", "families.html.j2", page="families", lines=lines, families=_MEANINGS)


def build(results: Path, out: Path) -> tuple[list[Section], int]:
    """Write the page; return what it shows and the number of its files.

    Raises:
        RecordError: while any file is invalid: nothing is published then.
        ConfigurationError: when `out` holds something that `build` did not write.
        StorageError: when a file cannot be written.
    """
    stored, problems = validate(results)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:20])
        raise RecordError(f"{len(problems)} problems; nothing is published while a file is invalid:\n{shown}")
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise ConfigurationError(f"{out} holds something else than a leaderboard; choose another --out.")
    if out.resolve() in results.resolve().parents or out.resolve().is_relative_to(results.resolve()):
        raise ConfigurationError(f"{out} contains the results, or lies among them; choose another --out.")
    site = Site(stored)
    rendered = site.render()
    with storage(out):
        for path in sorted(out.rglob("*"), reverse=True) if out.exists() else ():
            if path.is_file() and path.relative_to(out).as_posix() not in rendered:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        for name, content in rendered.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != content:
                path.write_bytes(content)
    return site.sections, len(rendered)


def schema_text() -> str:
    """The JSON Schema as it is shipped."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _typed(row: Mapping[str, str]) -> dict[str, str | float | None]:
    return {
        name: None if text == "" else text if name in _TEXTS else json.loads(_json_number(text))
        for name, text in row.items()
    }


def _json_number(text: str) -> str:
    return json.dumps(float(text) if any(letter in text for letter in ".en") else int(text))


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
