"""Which images a report shows, by a rule that it states, and their pictures row by row."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from gibench.errors import RecordError
from gibench.records import read_records
from gibench.report.pictures import draw_strip, picture_path, png_uri
from gibench.report.summary import Group, Key, Row, group, summarize
from gibench.report.table import reading_order
from gibench.report.words import signed
from gibench.storage import write_atomically
from gibench.types import Record


@dataclass(frozen=True)
class Picture:
    """One cell: a data URI (None where nothing was recorded), the line below it, the hint, and whether it succeeded."""

    uri: str | None
    caption: str
    hint: str
    success: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures of one scenario. groups: heading and number of columns; rows: label and one picture per column."""

    rule: str
    groups: list[tuple[str, int]]
    rows: list[tuple[str, list[Picture]]]

    @property
    def starts(self) -> set[int]:
        """Columns at which a group other than the first begins."""
        return set(accumulate(count for _, count in self.groups))


class Album:
    """The stored pictures of one scenario, each file read once.

    Args:
        run_folder: of the run.
        scenario: its name.
        attacks: its records, as `group` returns them.
        rows: its rows of the summary; attacks and controls with pictures are shown, in reading order.
    """

    def __init__(self, run_folder: Path, scenario: str, attacks: dict[str, Group], rows: Sequence[Row]) -> None:
        self._run_folder, self._scenario, self.attacks = run_folder, scenario, attacks
        shown = [row for row in reading_order(rows) if row.kind in ("attack", "control")]
        self._stored = {row.attack: self._keys(row.attack) for row in shown}
        self.rows = [row for row in shown if self._stored[row.attack]]
        self._files: dict[Path, dict[str, Tensor]] = {}

    def images(self, rows: Sequence[Row]) -> tuple[list[Key], str]:
        """Return the images that all attacks of `rows` have, or else the first one, and a name for whoever has them."""
        first = rows[0].attack
        shared = set.intersection(*(set(self._stored[row.attack]) for row in rows if row.kind == rows[0].kind))
        if shared:
            return [key for key in self._stored[first] if key in shared], "every attack"
        return self._stored[first], first

    def tensor(self, attack: str, key: Key, name: str) -> Tensor | None:
        """Return the reconstruction ("images") or the truth ("private") of one image, (C, H, W), or None."""
        update_id, position = key
        path = picture_path(self._run_folder, self._scenario, attack, update_id)
        if key not in self._stored[attack]:
            return None
        if path not in self._files:
            self._files[path] = load_file(path)
        return self._files[path][name][int(position)]

    def _keys(self, attack: str) -> list[Key]:
        exists: dict[str, bool] = {}
        for update_id, _ in self.attacks[attack]:
            if update_id not in exists:
                exists[update_id] = picture_path(self._run_folder, self._scenario, attack, update_id).is_file()
        return [key for key in self.attacks[attack] if exists[key[0]]]


def hang(album: Album, *, success_psnr: float) -> Gallery | None:
    """Choose images of a scenario by rank and by id and make their pictures; None where none is stored."""
    if not album.rows:
        return None
    first = album.rows[0].attack
    images, who = album.images(album.rows)
    groups, keys = _choose(images, album.attacks[first])
    rule = (
        f"All images that {who} was run on, ranked by the PSNR that {first} reaches."
        if len(groups) == 1
        else f"Of the images that {who} was run on the two best, middle and worst, ranked by the PSNR that {first} "
        "reaches, and the first of the others by their id."
    )
    records = album.attacks[first]
    truth = [
        Picture(_uri(album.tensor(first, key, "private")), "", f"private image {records[key].image_id}") for key in keys
    ]
    rows = [("private", truth)]
    for row in album.rows:
        found = album.attacks[row.attack]
        rows.append((row.attack, [_picture(album, found.get(key), row.attack, key, success_psnr) for key in keys]))
    return Gallery(rule, groups, rows)


def hang_medians(albums: Sequence[tuple[str, Album]], *, success_psnr: float) -> Gallery | None:
    """Make a gallery of scenarios side by side, one image of each: the median of the attack that is best there.

    Args:
        albums: heading -> album, one column each; those without pictures of an attack are left out.
        success_psnr: dB from which on an image counts as recovered.
    """
    shown = [(heading, album, *_median(album)) for heading, album in albums if _tried(album)]
    if not shown:
        return None
    rule = (
        "At each value one image, the same for all attacks: of those that every attack was run on the one whose PSNR "
        "is the median (of an even number the lower one) of the attack that is best there on average."
    )
    truth = [
        Picture(_uri(album.tensor(best, key, "private")), "", f"private image {album.attacks[best][key].image_id}")
        for _, album, best, key in shown
    ]
    names = sorted({row.attack for _, album in albums for row in _tried(album)})
    rows = [("private", truth)]
    for name in names:
        found = [(album, album.attacks.get(name, {}).get(key), key) for _, album, _, key in shown]
        rows.append((name, [_picture(album, record, name, key, success_psnr) for album, record, key in found]))
    return Gallery(rule, [(heading, 1) for heading, *_ in shown], rows)


def _tried(album: Album) -> list[Row]:
    return [row for row in album.rows if row.kind == "attack" and row.has_images]


def _median(album: Album) -> tuple[str, Key]:
    """The best attack with pictures, and the image at the middle of its ranks."""
    tried = _tried(album)
    best = tried[0].attack
    records = album.attacks[best]
    ranked = sorted(album.images(tried)[0], key=lambda key: (records[key].psnr, records[key].image_id, key))
    return best, ranked[(len(ranked) - 1) // 2]


def comparison_strip(run_folder: Path, path: Path, *, scenario: str | None = None, images: int = 8) -> Path:
    """Draw "private next to reconstructed" as a PNG: a row per attack, the first `images` images by id.

    A reconstruction that failed stays blank; an attack that refused is left out.

    Args:
        run_folder: of a run with stored reconstructions.
        path: of the PNG.
        scenario: its name; the first one with pictures where None.
        images: how many columns at most.

    Raises:
        RecordError: when the run has no such scenario, or no stored reconstructions of it.
    """
    for name, attacks in group(read_records(run_folder / "records.jsonl")).items():
        rows = summarize(record for found in attacks.values() for record in found.values())
        album = Album(run_folder, name, attacks, rows)
        if scenario in (None, name) and album.rows:
            break
    else:
        wanted = "any scenario" if scenario is None else f"scenario {scenario!r}"
        raise RecordError(f"{run_folder} stores no reconstructions of {wanted}; run it again and keep its pictures.")
    first = album.rows[0].attack
    keys = sorted(album.images(album.rows)[0], key=lambda key: (attacks[first][key].image_id, key))[:images]
    strip = [("private", "", [album.tensor(first, key, "private") for key in keys])]
    for row in (row for row in album.rows if row.kind == "attack" and row.has_images):
        found = attacks[row.attack]
        solved = [key if key in found and found[key].status == "ok" else None for key in keys]
        pictures = [album.tensor(row.attack, key, "images") if key else None for key in solved]
        strip.append((row.attack, f"{signed(row.psnr.value or 0.0)} dB on average", pictures))
    png = io.BytesIO()
    draw_strip(strip).save(png, "PNG", optimize=True)
    return write_atomically(png.getvalue(), path)


def _choose(keys: Sequence[Key], records: Group) -> tuple[list[tuple[str, int]], list[Key]]:
    """At most ten images: two best, two middle, two worst, four first by id; of ten or fewer all."""
    ranked = sorted(keys, key=lambda key: (-records[key].psnr, records[key].image_id))
    if len(ranked) <= 10:
        return [("best to worst", len(ranked))], ranked
    middle = len(ranked) // 2 - 1
    chosen = ranked[:2] + ranked[middle : middle + 2] + ranked[-2:]
    others = sorted(set(keys) - set(chosen), key=lambda key: (records[key].image_id, key))[:4]
    return [("best", 2), ("median", 2), ("worst", 2), ("first by id", 4)], chosen + others


def _picture(album: Album, record: Record | None, attack: str, key: Key, success_psnr: float) -> Picture:
    if record is None:
        return Picture(None, "–", f"not attacked by {attack}")
    caption = signed(record.psnr) if record.status == "ok" else record.status
    hint = f"{attack}, {record.image_id}: {signed(record.psnr)} dB"
    hint += f" ({record.status}: {record.reason or 'not finite'})" if record.status != "ok" else ""
    hint += f" ({record.remark})" if record.remark else ""
    uri = _uri(album.tensor(attack, key, "images")) if record.status == "ok" else None
    return Picture(uri, caption, hint, record.status == "ok" and record.psnr >= success_psnr)


def _uri(image: Tensor | None) -> str | None:
    return None if image is None else png_uri(image)
