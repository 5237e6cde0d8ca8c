"""From entries to rows: what each attack reaches, what it is held against, and who is better beyond noise."""

import statistics as plain
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from gibench.metrics.intervals import Interval
from gibench.metrics.label_scores import label_scores
from gibench.report.summary import EXACT_PSNR, Verdict, judge
from leaderboard.rows import FloorRow, Row, Scenario, Section
from leaderboard.schema import LEAST_IMAGES, Entry, Image, Yardstick
from leaderboard.statistics import Clusters, all_pairs, mean, ranks, share
from leaderboard.store import Stored, current
from leaderboard.threat_models import position

Scores = dict[tuple[int, str, int], float]


def board(stored: Sequence[Stored]) -> list[Section]:
    """Sections of the current revisions, the usual threat models first; the same for the same files."""
    ordered = sorted(current(stored), key=_position)
    sections = []
    for name, members in groupby(ordered, key=lambda each: each.identity[1]):
        inside = list(members)
        scenarios = [
            _scenario(list(group))
            for _, group in groupby(inside, key=lambda each: (each.identity[0], each.identity[2]))
        ]
        sections.append(Section(name=name, threat_model=inside[0].entry.threat_model, scenarios=scenarios))
    return sections


def _position(each: Stored) -> tuple[tuple[int, ...], tuple[str, ...]]:
    data, threat_model, *rest = each.identity
    return position(each.entry.threat_model), (threat_model, data, *rest)


def scores(entry: Entry) -> Scores:
    """PSNR of each image."""
    return {image.key: image.psnr for image in entry.images}


def clusters(entry: Entry) -> Clusters:
    """The private batch and the victim of each image."""
    return Clusters.of([image.update_id for image in entry.images], [image.run for image in entry.images])


def reached(image: Image, psnr: float) -> bool:
    """Whether an image was recovered so well; what failed was not, however close the floor comes to it."""
    return image.status == "ok" and image.psnr >= psnr


def _scenario(members: Sequence[Stored]) -> Scenario:
    rows = sorted((_row(each) for each in members), key=_from_best)
    pairs = all_pairs([scores(row.entry) for row in rows])
    able = [place for place, row in enumerate(rows) if _can_rank(row)]
    among = {(able.index(i), able.index(j)): pairs[i, j] for i in able for j in able if i < j}
    found = ranks([rows[place].psnr.value or 0.0 for place in able], among, least=LEAST_IMAGES)
    for place, rank in zip(able, found, strict=True):
        rows[place] = _with(rows[place], rank=rank, tied=found.count(rank) > 1)
    for place, row in enumerate(rows):
        if place and row.answers_images and rows[0].answers_images:
            rows[place] = _with(row, behind=negated(pairs[0, place]))
    first = members[0].entry
    return Scenario(
        name="--".join(members[0].identity[:3]),
        label=first.scenario,
        words=_words(first),
        rows=rows,
        floors=_floors([row.entry for row in rows]),
        pairs=pairs,
    )


def _with(row: Row, **changes: Any) -> Row:  # noqa: ANN401 - fields of a row
    return Row(**{**row.__dict__, **changes})


def _from_best(row: Row) -> tuple[bool, float, str]:
    """Rows with images by PSNR, then those of labels alone by their labels."""
    only_labels = row.verdict == "labels only"
    best = row.labels if only_labels else row.psnr
    return only_labels, -((best.value if best else None) or 0.0), row.entry.attack.name


def negated(found: Interval) -> Interval:
    """The interval of b minus a, of that of a minus b."""
    if found.value is None:
        return found
    if found.low is None or found.high is None:
        return Interval(-found.value, None, None, found.images, found.clusters, found.reason)
    return Interval(-found.value, -found.high, -found.low, found.images, found.clusters)


def _can_rank(row: Row) -> bool:
    return not row.silent and row.verdict != "labels only" and len(row.entry.images) >= LEAST_IMAGES


def _row(stored: Stored) -> Row:
    entry = stored.entry
    images, group = entry.images, clusters(entry)
    psnr = [image.psnr for image in images]
    statuses = {image.status for image in images}
    floor = _best_floor(entry)
    below = entry.floors[floor].psnr
    margin = mean([mine - other for mine, other in zip(psnr, below, strict=True)], group)
    recovered = [reached(image, entry.success_psnr) for image in images]
    gained = [float(a) - float(b >= entry.success_psnr) for a, b in zip(recovered, below, strict=True)]
    verdict: Verdict = judge(margin, mean(gained, group))
    if statuses in ({"refused"}, {"labels"}):
        verdict = "refused" if statuses == {"refused"} else "labels only"
    control = entry.controls.get("wrong update")
    oracle = [image.psnr_oracle - image.psnr for image in images if image.psnr_oracle is not None]
    return Row(
        stored=stored,
        psnr=mean(psnr, group),
        median=plain.median(psnr),
        floor=floor,
        margin=margin,
        verdict=verdict,
        success=share(recovered, group),
        exact=share([reached(image, EXACT_PSNR) for image in images], group),
        ssim=_complete([image.ssim for image in images]),
        lpips_alex=_complete([image.lpips_alex for image in images]),
        lpips_vgg=_complete([image.lpips_vgg for image in images]),
        labels=_labels(entry),
        gap=mean(oracle, group) if len(oracle) == len(images) else None,
        control=mean(control.psnr, group) if control else None,
        failed=sum(image.status in ("diverged", "refused") for image in images) / len(images),
        gradients=plain.fmean(image.gradient_evaluations for image in images),
        seconds=plain.fmean(image.seconds for image in images),
        offline_seconds=sum(run.cost.offline_seconds for run in entry.runs),
        peak_memory_bytes=max(run.cost.peak_memory_bytes for run in entry.runs),
    )


def _best_floor(entry: Entry) -> str:
    """The highest floor that is no oracle; names decide between equals."""
    means = {name: plain.fmean(floor.psnr) for name, floor in entry.floors.items() if not name.endswith("(oracle)")}
    return max(means, key=lambda name: (means[name], name))


def _complete(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return plain.fmean(present) if len(present) == len(values) else None


def _labels(entry: Entry) -> Interval | None:
    """Share of labels inferred, as multisets within each update; None where none is."""
    if all(image.label_inferred is None for image in entry.images):
        return None
    updates: dict[tuple[int, str], list[Image]] = {}
    for image in entry.images:
        updates.setdefault((image.run, image.update_id), []).append(image)
    found = {
        key: label_scores([image.label for image in rows], [image.label_inferred for image in rows]).accuracy
        for key, rows in updates.items()
    }
    return share([found[image.run, image.update_id] for image in entry.images], clusters(entry))


def _floors(entries: Sequence[Entry]) -> list[FloorRow]:
    """The floors of a scenario, oracles last; what an attack's prior alone answers belongs to its row's page."""
    names = dict.fromkeys(name for entry in entries for name in entry.floors if name != "prior alone")
    rows = [_floor(name, entries) for name in names]
    return sorted(rows, key=lambda row: (row.oracle, -(row.psnr.value or 0.0), row.name))


def _floor(name: str, entries: Sequence[Entry]) -> FloorRow:
    values: Scores = {}
    for entry in entries:
        if name in entry.floors:
            for image, value in zip(entry.images, entry.floors[name].psnr, strict=True):
                values.setdefault(image.key, value)
    keys = sorted(values)
    group = Clusters.of([update for _, update, _ in keys], [run for run, _, _ in keys])
    column = [values[key] for key in keys]
    return FloorRow(
        name=name,
        oracle=name.endswith("(oracle)"),
        images=len(keys),
        psnr=mean(column, group),
        median=plain.median(column),
        success=share([value >= entries[0].success_psnr for value in column], group),
    )


def yardstick_interval(entry: Entry, yardstick: Yardstick) -> Interval:
    """The mean of a floor or a control on the images of one entry."""
    return mean(yardstick.psnr, clusters(entry))


def _words(entry: Entry) -> str:
    """The scenario in a line: data, batch, victim."""
    victim, data = entry.runs[0].victim, entry.data
    channels, height, width = data.image_shape
    size = max(image.position for image in entry.images) + 1
    batch = (
        "one image per update" if size == 1 else f"{size} images per update, labels {data.sampler.replace('_', ' ')}"
    )
    steps = f", trained for {victim.training_steps:,} steps" if victim.training_steps else ""
    accuracy = f" ({100 * victim.test_accuracy:.0f} % accuracy)" if victim.test_accuracy is not None else ""
    gray = " gray" if channels == 1 else ""
    return f"{data.name}, {height} × {width}{gray}; {batch}; {victim.architecture}{steps}{accuracy}"
