"""The folder of results: what must lie where, and that nothing that somebody adds to it is taken on trust."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from entries import Tree, entry_tree, write_entry
from PIL import Image as Pillow

from gibench.errors import RecordError
from leaderboard import pictures
from leaderboard.site import build
from leaderboard.store import current, files, picture_folder, validate

SCENARIO = Path("cifar10", "initial_bn-absent_labels-ordered", "cifar10-lenet-b1")


def said(results: Path) -> list[str]:
    return [str(problem) for problem in validate(results)[1]]


def edit(file: Path, change: Callable[[Tree], Any]) -> None:
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes = b"", extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return pictures.MAGIC + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_results_that_agree_are_valid(results: Path) -> None:
    stored, problems = validate(results)
    assert problems == []
    assert len(stored) == len(files(results)) == 4
    assert any(each.entry.pictures for each in stored)


def test_every_problem_of_every_file_is_named_at_once(results: Path) -> None:
    edit(results / SCENARIO / "ig.json", lambda tree: tree["images"][0].update(psnr="high"))
    edit(results / SCENARIO / "dlg.json", lambda tree: tree.update(success_psnr=-1.0, surplus=1))
    (results / SCENARIO / "weak.json").write_text("{")
    found = "\n".join(said(results))
    for name in ("ig.json: images.0.psnr", "dlg.json: success_psnr", "dlg.json: surplus", "weak.json: is no JSON"):
        assert name in found


def test_only_the_named_files_are_complained_about(results: Path) -> None:
    (results / SCENARIO / "weak.json").write_text("{")
    stored, problems = validate(results, [results / SCENARIO / "ig.json"])
    assert (len(stored), problems) == (1, [])


def test_an_entry_lies_where_its_content_says(results: Path) -> None:
    (results / SCENARIO / "ig.json").rename(results / SCENARIO / "other.json")
    assert any("wrong place" in line and f"{SCENARIO}/ig.json" in line for line in said(results))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "is missing"),
        (b"", "is no PNG"),
        (b"GIF89a" + b"\0" * 60, "is no PNG"),
        (b"\x89PNG\r\n\x1a\n<script>", "is no PNG"),
        (png(60_000, 60_000), "60000 x 60000 pixels"),
        (png(9, 8), "9 x 8 pixels"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 2**20, "bytes; a picture has at most"),
        (png(8, 8, extra=chunk(b"tEXt", b"Comment\0hello")), "more than one picture"),
        (png(8, 8) + b"tail", "more than one picture"),
        (png(8, 8, rows=b"\0" * 200), "SHA-256"),
    ],
)
def test_pictures_are_checked_before_they_are_opened(results: Path, content: bytes | None, complaint: str) -> None:
    file = next(picture_folder(results / SCENARIO / "ig.json").iterdir())
    file.unlink() if content is None else file.write_bytes(content)
    assert any(complaint in line and file.name in line for line in said(results)), said(results)


def test_a_broken_png_of_the_right_hash_is_refused(results: Path) -> None:
    content = png(8, 8, rows=b"\0" * 10)
    entry = results / SCENARIO / "ig.json"
    name = json.loads(entry.read_text())["pictures"][0]["file"]
    (picture_folder(entry) / name).write_bytes(content)
    edit(entry, lambda tree: tree["pictures"][0].update(sha256=pictures.digest(content)))
    assert any("cannot be decoded" in line for line in said(results))


def test_a_picture_that_is_not_what_was_scored_is_refused(results: Path) -> None:
    """The right file by its hash, but of other pixels than its score says: somebody chose a nicer one."""
    entry = results / SCENARIO / "ig.json"
    name = json.loads(entry.read_text())["pictures"][0]["file"]
    truth = (entry.parent / "private" / name).read_bytes()
    (picture_folder(entry) / name).write_bytes(truth)
    edit(entry, lambda tree: tree["pictures"][0].update(sha256=pictures.digest(truth)))
    assert any("RMS error of 0.0000, the record says" in line for line in said(results))


def test_rounding_to_8_bits_is_no_difference() -> None:
    buffer = io.BytesIO()
    Pillow.new("RGB", (8, 8), (10, 20, 30)).save(buffer, "PNG")
    assert buffer.getvalue()[:8] == pictures.MAGIC
    assert pytest.approx(0.00196, abs=1e-5) == pictures.ROUNDING


def test_links_lead_nowhere(results: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text("{}")
    (results / "linked").symlink_to(outside)
    (results / SCENARIO / "link.json").symlink_to(outside / "secret.json")
    found = said(results)
    assert sum("is a link" in line for line in found) == 2
    assert not any("secret" in line for line in found)


@pytest.mark.parametrize(
    "name", ["notes.txt", "ig.html", "page.svg", "ig.verified.txt", "ig/more.png", "x.verified.json"]
)
def test_strangers_are_refused(results: Path, name: str) -> None:
    (results / SCENARIO / name).write_text("hello")
    assert any("belongs to no entry" in line for line in said(results))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tree: tree["data"].update(content_sha256="e" * 64), ": data: differs"),
        (lambda tree: tree["runs"][0]["victim"].update(weights_sha256="e" * 64), "is not the victim"),
        (lambda tree: tree["images"][2].update(label=9), "images.2: is another image"),
        (lambda tree: tree["floors"]["class mean"]["psnr"].__setitem__(1, 30.0), "floors.class mean.psnr.1"),
        (lambda tree: tree.update(success_psnr=10.0), "success_psnr: differs"),
    ],
)
def test_rows_of_a_scenario_attack_the_same(results: Path, change: Callable[[Tree], Any], complaint: str) -> None:
    edit(results / SCENARIO / "ig.json", change)
    assert any(complaint in line for line in said(results)), said(results)


def superseding(sha256: str, revision: int = 2) -> Tree:
    return entry_tree("ig", level=17.0) | {
        "revision": revision,
        "supersedes": {"revision": revision - 1, "sha256": sha256, "reason": "a wrong step size"},
    }


def test_a_revision_replaces_the_one_before(results: Path) -> None:
    before = next(each for each in validate(results)[0] if each.file == (results / SCENARIO / "ig.json").resolve())
    write_entry(results, superseding(before.sha256))
    stored, problems = validate(results)
    assert problems == []
    assert len(stored) == 5
    assert [each.entry.revision for each in current(stored) if each.identity == before.identity] == [2]
    edit(before.file, lambda tree: tree["submission"].update(note="an edit"))
    assert any("ig.json was edited since" in line for line in said(results))


def test_a_revision_needs_the_one_before(results: Path) -> None:
    write_entry(results, superseding("a" * 64, revision=3))
    assert any("revision 2 is not there" in line for line in said(results))


def test_build_publishes_nothing_while_a_file_is_invalid(results: Path, tmp_path: Path) -> None:
    (results / SCENARIO / "weak.json").write_text("{")
    with pytest.raises(RecordError, match="nothing is published"):
        build(results, tmp_path / "page")
    assert not (tmp_path / "page").exists()
