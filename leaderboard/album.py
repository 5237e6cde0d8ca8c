"""Pictures and scores for the pages: the gallery of a row, and what comparing two rows needs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gibench.metrics.intervals import Interval
from leaderboard import pictures
from leaderboard.board import scores
from leaderboard.exports import interval
from leaderboard.rows import Row, Scenario
from leaderboard.schema import Image
from leaderboard.store import PRIVATE, picture_folder

Picture = Callable[[Path], str]
"""Takes a stored picture into the page and returns where it lies there."""


@dataclass(frozen=True)
class Shown:
    """A picture of a row's page."""

    image: Image
    heading: str
    found: str
    private: str
    start: bool
    hit: bool


def gallery(row: Row, picture: Picture) -> list[Shown]:
    """The best, median and worst image, then the fixed sample."""
    entry = row.entry
    psnr = [image.psnr for image in entry.images]
    order = sorted(range(len(psnr)), key=lambda image: (psnr[image], image))
    stored = {each.image: each for each in entry.pictures}
    wanted = [(order[-1], "best"), (order[len(order) // 2], "median"), (order[0], "worst")]
    wanted += [(index, "first" if index == 0 else "") for index in range(min(pictures.FIXED, len(psnr)))]
    return [
        Shown(
            image=entry.images[index],
            heading=heading,
            found=picture(picture_folder(row.stored.file) / stored[index].file),
            private=picture(row.stored.file.parent / PRIVATE / stored[index].file),
            start=heading == "first",
            hit=entry.images[index].status == "ok" and entry.images[index].psnr >= entry.success_psnr,
        )
        for index, heading in wanted
        if index in stored
    ]


def pairs_of(scenario: Scenario) -> dict[tuple[int, int], Interval]:
    """Paired differences of the rows that answer images, numbered among themselves."""
    places = [scenario.rows.index(row) for row in scenario.comparable]
    return {(i, j): scenario.pairs[places[i], places[j]] for j in range(len(places)) for i in range(j)}


def comparison(scenario: Scenario, picture: Picture) -> dict[str, Any]:
    """What a page needs to compare any two rows of a scenario: scores, paired differences, pictures."""
    rows = scenario.comparable
    pairs = pairs_of(scenario)
    keys = {key: str(number) for number, key in enumerate(sorted({k for r in rows for k in scores(r.entry)}))}
    names = {keys[image.key]: image.image_id for row in rows for image in row.entry.images}
    private: dict[str, str] = {}
    listed = []
    for row in rows:
        found = {}
        for stored in row.entry.pictures:
            key = keys[row.entry.images[stored.image].key]
            found[key] = picture(picture_folder(row.stored.file) / stored.file)
            private[key] = picture(row.stored.file.parent / PRIVATE / stored.file)
        listed.append(
            {
                "name": row.entry.attack.name,
                "psnr": interval(row.psnr),
                "scores": {keys[key]: round(value, 2) for key, value in scores(row.entry).items()},
                "pictures": found,
            }
        )
    first = [keys[image.key] for image in rows[0].entry.images]
    written = {
        f"{i},{j}": [_rounded(found.value), _rounded(found.low), _rounded(found.high), found.images]
        for (i, j), found in pairs.items()
    }
    return {
        "rows": listed,
        "pairs": written,
        "images": names,
        "private": private,
        "order": [key for key in first if key in private] + sorted(set(private) - set(first)),
        "success": rows[0].entry.success_psnr,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
