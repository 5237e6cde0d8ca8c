"""The page as files: the same bytes each time, small, escaped, under a policy; the README's rows from the same."""

import csv
import io
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from entries import entry_tree, write_entry
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gibench.errors import ConfigurationError
from gibench.report.words import signed
from gibench.types import ThreatModel
from leaderboard.board import board
from leaderboard.exports import BEGIN, END, FLAT, bibtex, bibtex_key, fill_readme, readme_block
from leaderboard.html import in_script
from leaderboard.schema import Citation, Entry
from leaderboard.site import MARK, Site, build
from leaderboard.store import RESULTS, Stored, validate
from leaderboard.threat_models import position

REPOSITORY = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored(**changes: Any) -> Stored:
    """An entry in memory."""
    entry = Entry.model_validate_json(json.dumps(entry_tree(**changes)))
    return Stored(Path("nowhere"), "0" * 64, entry)


def test_a_second_build_is_the_same_and_removes_what_is_gone(results: Path, tmp_path: Path) -> None:
    build(results, tmp_path / "one")
    build(results, tmp_path / "two")
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two")
    for file in (results / "cifar10").glob("*/*/weak*"):
        file.unlink() if file.is_file() else shutil.rmtree(file)
    for problem in validate(results)[1]:
        assert problem.file.parent.name == "private", "only the pictures that no other entry has are left over"
        problem.file.unlink()
    build(results, tmp_path / "two")
    assert set(first) - set(contents(tmp_path / "two")) >= {
        name for name in first if name.startswith(("rows", "entries")) and "weak" in name
    }
    build(results, tmp_path / "one")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_other_peoples_folders_are_left_alone(results: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    for out in (tmp_path / "mine", tmp_path, results, results / "page"):
        with pytest.raises(ConfigurationError, match="choose another --out"):
            build(results, out)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
    assert not list(tmp_path.rglob(MARK))


def test_three_hundred_rows_are_under_two_megabytes() -> None:
    rows = [
        stored(
            attack=f"attack-{row:02d}", scenario=f"scenario-{place:02d}", level=10 + row / 2, images=8, inferred=True
        )
        for place in range(10)
        for row in range(30)
    ]
    page = Site(rows).index()
    assert page.count(b'<tr class="attack') == 300
    assert len(page) < 2_000_000


def test_pages_forbid_everything_but_their_own(results: Path, tmp_path: Path) -> None:
    build(results, tmp_path / "page")
    pages = list((tmp_path / "page").rglob("*.html"))
    assert len(pages) == 3 + 4 + 1
    for page in pages:
        text = page.read_text()
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
        assert policy
        assert "default-src 'none'" in policy[1].replace("&#39;", "'")
        assert "unsafe" not in policy[1]
        assert not re.search(r"\son\w+=|\sstyle=|<iframe|<object|javascript:", text)
        sources = re.findall(r'(?:src|href)="([^"]*)"', text)
        assert not [each for each in sources if each.startswith(("http:", "//")) or each == ""]
        for each in sources:
            if not each.startswith(("https://example.org", "#", "data:")):
                assert (page.parent / each.split("#")[0]).is_file(), f"{page.name} links to {each}"


def test_the_csv_has_every_row_and_its_numbers(results: Path, tmp_path: Path) -> None:
    build(results, tmp_path / "page")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "page" / "leaderboard.csv").read_text())))
    assert tuple(rows[0]) == FLAT
    attacks = [row for row in rows if row["kind"] == "attack"]
    assert [row["attack"] for row in attacks] == ["dlg", "ig", "weak", "ig"]
    found = {(row["threat_model"], row["attack"]): row for row in attacks}
    for each in validate(results)[0]:
        row = found[each.identity[1], each.identity[3]]
        psnr = [image.psnr for image in each.entry.images]
        assert float(row["psnr"]) == pytest.approx(sum(psnr) / len(psnr), abs=1e-4)
    typed = json.loads((tmp_path / "page" / "leaderboard.json").read_text())
    assert [row["psnr"] for row in typed] == [float(row["psnr"]) for row in rows]


def test_rows_that_do_not_clear_their_floor_look_like_it() -> None:
    sections = board([stored(attack="weak", level=12.0, images=100), stored(attack="good", level=25.0, images=100)])
    good, weak = sections[0].scenarios[0].rows
    assert (good.rank, good.silent) == (1, False)
    assert (weak.rank, weak.silent, weak.verdict) == (None, True, "no leak measured")
    page = Site([good.stored, weak.stored]).index().decode()
    assert re.search(r'<tr class="attack silent" data-id="[^"]*--weak"', page)
    assert 'title="−' in page
    assert "no leak measured" in page


def test_the_usual_threat_models_come_first() -> None:
    usual = {"victim": "initial", "batch_norm": "absent"}
    order = [
        usual,
        {**usual, "defense": "known"},
        {**usual, "prior_data": "in_distribution"},
        {**usual, "labels": "counts"},
        {**usual, "labels": "none"},
        {**usual, "victim": "converged"},
    ]
    models = [ThreatModel.model_validate(flags) for flags in order]
    for shuffled in itertools.permutations(models):
        assert sorted(shuffled, key=position) == models


def test_a_row_of_few_images_has_no_rank() -> None:
    rows = board([stored(attack="few", level=30.0, images=99)])[0].scenarios[0].rows
    assert (rows[0].verdict, rows[0].rank) == ("leak", None)


def test_rows_within_noise_share_their_rank() -> None:
    entries = [stored(attack=name, level=level, images=100) for name, level in (("a", 20.0), ("b", 20.0), ("c", 15.0))]
    rows = board(entries)[0].scenarios[0].rows
    assert [row.rank for row in rows] == [1, 1, 3]
    assert [row.tied for row in rows] == [True, True, False]


class Texts(HTMLParser):
    """The elements of a page, and the text of each script that is data."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


hostile = st.text(
    st.sampled_from(list("<>&\"'`/={}%\\-!;()a1 ")) | st.characters(min_codepoint=33, max_codepoint=126),
    min_size=1,
    max_size=40,
)


def is_text(text: str) -> bool:
    return text == text.strip() and text[0] not in "=+-@"


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=25)
@given(text=hostile.filter(is_text))
def test_any_text_is_shown_and_makes_no_element(text: str) -> None:
    plain, odd = (Site([stored(title=title, images=6)]).index().decode() for title in ("Plain", text))
    assert Texts(odd).elements == Texts(plain).elements
    data = json.loads(re.findall(r'<script type="application/json" id="board">(.*?)</script>', odd, re.DOTALL)[0])
    assert any(text in values for values in data["rows"].values())
    assert text in Texts(odd).text


@given(text=st.text())
def test_json_in_a_script_cannot_end_it(text: str) -> None:
    written = str(in_script({"text": text, text: 1}))
    assert not re.search(r"[<>&\u2028\u2029]", written)
    assert json.loads(written)["text"] == text or text == "text"


@example(text=" ")
@given(text=hostile)
def test_bibtex_keeps_its_braces(text: str) -> None:
    citation = Citation.model_construct(title=text, authors=(text, "B. Author"), year=2020, venue=text, url=None)
    written = bibtex(citation).replace("\\{", "").replace("\\}", "")
    assert written.count("{") == written.count("}")
    assert re.fullmatch(r"[a-z0-9]+", bibtex_key(citation))
    depth = 0
    for letter in written.strip():
        depth += (letter == "{") - (letter == "}")
        assert depth >= 0
    assert written.strip().endswith("}")


def test_the_readme_shows_the_published_results() -> None:
    """Filled by: gibench leaderboard build --readme README.md."""
    readme = (REPOSITORY / "README.md").read_text()
    sections = board(validate(RESULTS)[0])
    assert f"{BEGIN}\n{readme_block(sections)}\n{END}" in readme


def test_the_published_results_are_valid() -> None:
    entries, problems = validate(RESULTS)
    assert problems == []
    for each in entries:
        assert each.entry.runs[0].commit
        assert len(each.entry.images) >= 100


def test_the_readme_block_is_left_where_it_is_right(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}")
    sections = board(validate(results)[0])
    assert fill_readme(readme, sections)
    assert not fill_readme(readme, sections)
    best = sections[0].scenarios[0].rows[0]
    assert f"| dlg | 12 | {signed(best.psnr.value or 0)} [" in readme.read_text()


def test_no_results_make_a_page_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    build(tmp_path / "results", tmp_path / "page")
    assert "No result is published yet" in (tmp_path / "page" / "index.html").read_text()


def test_what_was_superseded_is_not_shown(results: Path, tmp_path: Path) -> None:
    before = next(each for each in validate(results)[0] if each.entry.attack.name == "dlg")
    reason = "the step size was <b>wrong</b>"
    write_entry(
        results,
        entry_tree("dlg", level=15.0)
        | {"revision": 2, "supersedes": {"revision": 1, "sha256": before.sha256, "reason": reason}},
    )
    build(results, tmp_path / "page")
    assert (tmp_path / "page" / "index.html").read_text().count('data-id="' + before.name + '"') == 1
    assert "&lt;b&gt;wrong&lt;/b&gt;" in (tmp_path / "page" / "rows" / f"{before.name}.html").read_text()
