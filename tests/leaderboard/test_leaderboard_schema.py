"""The schema: what an entry must be, and that whatever else a file holds is refused by name, never by a crash."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from entries import Tree, entry_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.reading import DEEPEST, MOST_BYTES, nesting, parse, read
from leaderboard.schema import Entry
from leaderboard.site import schema_text
from leaderboard.store import dump, place

FILE = Path("ig.json")


def problems(tree: Any) -> list[str]:
    return [str(each) for each in parse(json.dumps(tree).encode(), Entry, FILE).problems]


def changed(where: str, value: Any) -> Tree:
    """A valid tree with one value replaced; `where` is its place, as problems name it."""
    tree = entry_tree()
    *parents, last = [int(part) if part.isdigit() else part for part in where.split("/")]
    node: Any = tree
    for part in parents:
        node = node[part]
    node[last] = value
    return tree


def test_a_valid_entry_is_read_and_written_the_same() -> None:
    first = parse(json.dumps(entry_tree()).encode(), Entry, FILE)
    assert first.problems == []
    again = parse(dump(first.content), Entry, FILE)
    assert again.content == first.content
    assert dump(again.content) == dump(first.content)
    assert str(place(first.content)) == "cifar10/initial_bn-absent_labels-ordered/cifar10-lenet-b1/ig.json"


def test_one_image_stands_on_each_line() -> None:
    lines = dump(Entry.model_validate_json(json.dumps(entry_tree(images=30)))).decode().splitlines()
    assert sum('"update_id"' in line for line in lines) == 30
    assert max(map(len, lines)) < 1000


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("schema_version", 2, "schema_version"),
        ("schema_version", "1", "schema_version"),
        ("scenario", "../../outside", "scenario"),
        ("scenario", "a/b", "scenario"),
        ("scenario", "", "scenario"),
        ("attack/name", "..", "attack.name"),
        ("attack/name", "ig.r2", "attack.name"),
        ("attack/name", "private", "attack"),
        ("attack/title", "=HYPERLINK(1)", "formula"),
        ("attack/title", "two\nlines", "control"),
        ("attack/title", "hidden\u202etxt", "control"),
        ("attack/title", "x" * 301, "attack.title"),
        ("attack/family", "magic", "attack.family"),
        ("attack/citation/url", "javascript:alert(1)", "citation.url"),
        ("attack/citation/url", 'https://a.org/"onclick=', "citation.url"),
        ("attack/citation/year", "2020", "citation.year"),
        ("data/name", "a b", "data.name"),
        ("data/split", "tune", "data.split"),
        ("data/image_shape", [3, 8], "data.image_shape"),
        ("data/image_shape", [3, 8, 100000], "image_shape"),
        ("data/content_sha256", "A" * 64, "content_sha256"),
        ("threat_model/victim", "unknown", "threat_model.victim"),
        ("images", [], "images"),
        ("images/3/psnr", "18.0", "images.3.psnr"),
        ("images/3/psnr", -1.0, "images.3.psnr"),
        ("images/3/psnr", 101.0, "images.3.psnr"),
        ("images/3/psnr", True, "images.3.psnr"),
        ("images/3/psnr", None, "images.3.psnr"),
        ("images/3/psnr", 99.0, "images.3"),
        ("images/3/mse", 0.5, "images.3"),
        ("images/3/update_id", "u0001", "is there twice"),
        ("images/3/image_id", "cifar10/test/00001", "stands behind two updates"),
        ("images/3/label", 10, "has 10 classes"),
        ("images/3/run", 1, "images.3.run"),
        ("images/3/position", 1, "images"),
        ("images/3/status", "diverged", "scores as the mean image"),
        ("images/3/seed", 2**63, "images.3.seed"),
        ("floors/mean image/psnr", [12.0], "floors.mean image"),
        ("floors", {"class mean": entry_tree()["floors"]["class mean"]}, "mean image is missing"),
        ("runs", [], "runs"),
        ("runs/0/configuration/attack", {"class_path": "os.system"}, "configuration_sha256"),
        ("runs/0/configuration_sha256", "0" * 64, "configuration_sha256"),
        ("runs/0/commit", "0" * 40 + "-dirty", "runs.0.commit"),
        ("runs/0/victim/num_classes", 5, "num_classes"),
        ("runs/0/started", "2026-01-01", "runs.0.started"),
        ("runs/0/precision", "16", "runs.0.precision"),
        ("revision", 2, "supersedes"),
        (
            "pictures",
            [{"image": 0, "file": "../x.png", "sha256": "a" * 64, "private_sha256": "a" * 64}],
            "pictures.0.file",
        ),
        (
            "pictures",
            [{"image": 99, "file": "x.png", "sha256": "a" * 64, "private_sha256": "a" * 64}],
            "pictures.0.image",
        ),
        ("submission/by", "", "submission.by"),
        ("unknown", 1, "unknown"),
        ("images/3/unknown", 1, "images.3.unknown"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(where: str, value: Any, said: str) -> None:
    found = problems(changed(where, value))
    assert found
    assert any(said in each for each in found), found


def test_every_problem_is_named_at_once() -> None:
    tree = changed("images/3/psnr", "x")
    tree["attack"]["family"], tree["data"]["seed"] = "magic", "y"
    del tree["success_psnr"]
    found = " ".join(problems(tree))
    for where in ("images.3.psnr", "attack.family", "data.seed", "success_psnr"):
        assert where in found


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("where", ["success_psnr", "images/0/seconds", "runs/0/configuration/attack/init_args"])
def test_numbers_are_finite(word: str, where: str) -> None:
    text = json.dumps(changed(where, {"a": "HERE"} if where.endswith("init_args") else "HERE")).replace('"HERE"', word)
    assert parse(text.encode(), Entry, FILE).problems


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe{}", "is no JSON"),
        (b'{"a": 1, "a": 2}', "there twice"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
        (b"[]", "should be an object"),
        (b'{"scenario": "\\ud800"}', ""),
    ],
)
def test_what_is_no_entry_is_refused(content: bytes, said: str) -> None:
    found = parse(content, Entry, FILE)
    assert found.content is None
    assert any(said in str(each) for each in found.problems), found.problems


def test_brackets_in_texts_do_not_nest() -> None:
    assert nesting(json.dumps({"a": '[[[[{{{{\\"', "b": [[1]]}).encode()) == 3
    assert nesting(b"[" * 10**6) == DEEPEST + 1


def test_a_hundred_megabytes_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate(100 * 2**20)
    [problem] = read(tmp_path / "big.json", Entry).problems
    assert f"{MOST_BYTES:,}" in problem.what


def test_links_and_folders_are_no_entries(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to("/etc/hostname")
    for name in ("folder.json", "link.json", "missing.json"):
        assert "no plain file" in str(read(tmp_path / name, Entry).problems[0])


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a tree."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path, *(each for key, value in inner for each in places(value, (*path, key)))]


BASE = entry_tree(images=3, control=True)
PLACES = places(BASE)[1:]


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)
@given(where=st.sampled_from(PLACES), value=anything, drop=st.booleans())
def test_whatever_stands_anywhere_is_accepted_or_named(where: tuple[Any, ...], value: Any, drop: bool) -> None:
    """No value at any place makes reading fail but by problems; what is accepted is written and read again."""
    tree = copy.deepcopy(BASE)
    node: Any = tree
    for part in where[:-1]:
        node = node[part]
    if drop:
        del node[where[-1]]
    else:
        node[where[-1]] = value
    found = parse(json.dumps(tree).encode(), Entry, FILE)
    assert (found.content is None) == bool(found.problems)
    if found.content is not None:
        assert parse(dump(found.content), Entry, FILE).content == found.content
    for problem in found.problems:
        assert str(problem).isprintable()


@given(content=st.binary(max_size=200) | anything.map(lambda tree: json.dumps(tree).encode()))
def test_whatever_a_file_holds_is_refused_by_name(content: bytes) -> None:
    found = parse(content, Entry, FILE)
    assert found.content is None
    assert found.problems


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_psnr_is_accepted_only_with_its_own_error(value: float) -> None:
    accepted = problems(changed("images/3/psnr", value)) == []
    own = entry_tree()["images"][3]["psnr"]
    assert accepted == (0 <= value <= 100 and abs(value - own) <= 0.02 + 1e-4) or math.isclose(
        abs(value - own), 0.02, abs_tol=1e-3
    )


def test_the_json_schema_is_shipped() -> None:
    """Made anew by: gibench leaderboard validate --print-schema > leaderboard/entry.schema.json."""
    shipped = Path(__file__).parents[2] / "leaderboard" / "entry.schema.json"
    assert shipped.read_text() == schema_text()
