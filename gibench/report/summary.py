"""From records to one row per (scenario, attack): means with intervals, verdict against the floors, cost."""

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from gibench.metrics.intervals import Interval, mean_interval, paired_difference, share_interval
from gibench.metrics.label_scores import LabelScores, label_scores
from gibench.precision import Parity
from gibench.report.csv_file import Cell, write_csv
from gibench.report.errors import looks
from gibench.types import Record

Kind = Literal["attack", "control", "floor", "oracle"]
Verdict = Literal["leak", "leak in part", "no leak measured", "too few updates", "refused", "labels only"]
Key = tuple[str, str]
"""(update id, position in its batch): names a private image within a scenario, and pairs two attacks on it."""
Group = dict[Key, Record]

EXACT_PSNR = 60.0
"""From this PSNR on, in dB, a reconstruction counts as exact: its error, 0.001 RMS, is below half a step of 8 bits."""
LEAST_UPDATES = 5
"""With fewer a bootstrap interval is too narrow to conclude anything: of two it is the range."""
_FROM_BEST: tuple[Parity, ...] = ("reference", "within", "untested", "outside")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one attack (or floor) makes of one scenario.

    kind: "attack"; "control", an attack that was given another client's update; "floor", which sees no update;
        "oracle", which sees the truth and is shown for orientation only.
    psnr: mean over images in dB with its 95 % interval; psnr_median: their median. ssim, lpips_*, mse: means; None
        where the metric is missing for any image, because a mean over some of the images compares with nothing.
    success: share of images with a PSNR of at least `success_psnr`. exact: share from EXACT_PSNR on. Images that failed
        are in neither, however close the floor comes to them.
    failures: images that diverged or were refused; they score as the mean-image floor and stay in each mean (rule R7).
    remarks: how many images' searches ran into something, and into what, most frequent first; None where none did.
    oracle_gap: mean gain in dB had the best restart been chosen by the true image (rule R2), where that is recorded.
    label_accuracy: share of the true labels that the attack infers, as multisets within each update; None where it
        infers none at all, for example because they were given. An image that is left unlabeled counts as wrong.
    label_precision, label_recall, label_existence: mean over updates, of the classes: the share of the named ones that
        occur, of the occurring ones that are named, and of all whose occurrence is right (see `label_scores`); the last
        is None where the number of classes is not given.
    psnr_mixture, psnr_class_mean: mean PSNR in dB against the mean of the private batch and of the class. mixtures,
        class_means: share of images whose reconstruction is closer to that than to its own image. bad_pixels: mean
        share of pixels that are visibly wrong. tv_ratio: median of TV(reconstruction) / TV(image). identified: share of
        reconstructions that no other image of the split is closer to. All over the images that were reconstructed (see
        `ErrorsInPictures`); None where none says.
    floor: the best floor that applies, by its mean on the images of this row. margin: PSNR minus that floor's on the
        same images. verdict: see `judge`; "refused" where the attack refused every image, "labels only" where it
        answers nothing else. None for floors, and as long as there is no floor.
    leads: no attack of the scenario is better than this one beyond noise, on the images that both have (rule R8).
    precision: of the attack. parity: what the panel of rule R14 says of it (see `Record`), the worst of the images.
    gradient_evaluations, seconds: per image.
    """

    scenario: str
    attack: str
    kind: Kind
    images: int
    updates: int
    psnr: Interval
    psnr_median: float
    ssim: float | None
    lpips_alex: float | None
    lpips_vgg: float | None
    mse: float
    success: Interval
    exact: float
    failures: int
    remarks: str | None
    oracle_gap: float | None
    label_accuracy: Interval | None
    label_precision: Interval | None
    label_recall: Interval | None
    label_existence: Interval | None
    psnr_mixture: float | None
    mixtures: float | None
    psnr_class_mean: float | None
    class_means: float | None
    bad_pixels: float | None
    tv_ratio: float | None
    identified: float | None
    floor: str | None
    margin: Interval | None
    verdict: Verdict | None
    leads: bool
    precision: str
    parity: Parity
    gradient_evaluations: float
    seconds: float

    @property
    def has_images(self) -> bool:
        """Whether the attack answered images at all."""
        return self.verdict not in ("refused", "labels only")


def kind_of(attack: str) -> Kind:
    """Return what an attack's name in the records says that it is."""
    if attack.startswith("limit: "):
        return "oracle"
    if attack.startswith("floor: "):
        return "oracle" if attack.endswith("(oracle)") else "floor"
    return "control" if attack.endswith(" (wrong update)") else "attack"


def group(records: Iterable[Record]) -> dict[str, dict[str, Group]]:
    """Return scenario -> attack -> image -> record, sorted at each level whatever the order of `records`."""
    groups: dict[str, dict[str, Group]] = defaultdict(lambda: defaultdict(dict))
    for record in sorted(records, key=lambda r: (r.scenario, r.attack, r.update_id, r.position)):
        groups[record.scenario][record.attack][record.update_id, str(record.position)] = record
    return groups


def summarize(
    records: Iterable[Record], *, success_psnr: float = 20.0, num_classes: Mapping[str, int] | None = None
) -> list[Row]:
    """Return one row per (scenario, attack), sorted by both; the same for the same records in any order.

    Args:
        records: of one run, finished or not.
        success_psnr: dB from which on an image counts as recovered.
        num_classes: of the victim of each scenario, where that is known.
    """
    return [
        _row(attack, attacks, success_psnr=success_psnr, num_classes=(num_classes or {}).get(scenario))
        for scenario, attacks in group(records).items()
        for attack in attacks
    ]


def judge(margin: Interval, success_margin: Interval) -> Verdict:
    """Say whether an attack clears its floor (rule R5), from paired differences to it on the same images.

    "leak": the mean PSNR is above the floor's, beyond noise. "leak in part": the mean is not, but the share of
    recovered images is; such is an attack that solves some images exactly and diverges on the others.
    """
    if margin.low is None or success_margin.low is None or margin.clusters < LEAST_UPDATES:
        return "too few updates"
    if margin.low > 0:
        return "leak"
    return "leak in part" if success_margin.low > 0 else "no leak measured"


def write_summary_csv(rows: Sequence[Row], path: Path) -> None:
    """Write `rows` as a table; an interval becomes three columns, what is missing stays empty, seconds come last."""
    write_csv(CSV_COLUMNS, [_columns(row) for row in rows], path)


def _row(attack: str, attacks: dict[str, Group], *, success_psnr: float, num_classes: int | None) -> Row:
    images = attacks[attack]
    records = list(images.values())
    kind = kind_of(attack)
    updates = [record.update_id for record in records]
    psnr = [record.psnr for record in records]
    gaps = [record.psnr_oracle - record.psnr for record in records if record.psnr_oracle is not None]
    floor = _best_floor(attack, attacks) if kind in ("attack", "control") else None
    margin = None
    verdict: Verdict | None = None
    if floor is not None:
        margin = paired_difference(_scores(images), _scores(attacks[floor]))
        success_margin = paired_difference(_successes(images, success_psnr), _successes(attacks[floor], success_psnr))
        verdict = judge(margin, success_margin)
    if all(record.status == "refused" for record in records):
        verdict = "refused"
    elif all(record.status == "labels" for record in records):
        verdict = "labels only"
    columns: dict[str, Any] = {**_labels(records, num_classes), **looks(records)}
    return Row(
        scenario=records[0].scenario,
        attack=attack,
        kind=kind,
        images=len(records),
        updates=len(set(updates)),
        psnr=mean_interval(psnr, updates),
        psnr_median=statistics.median(psnr),
        ssim=_complete_mean([record.ssim for record in records]),
        lpips_alex=_complete_mean([record.lpips_alex for record in records]),
        lpips_vgg=_complete_mean([record.lpips_vgg for record in records]),
        mse=statistics.fmean(record.mse for record in records),
        success=share_interval([_reaches(record, success_psnr) for record in records], updates),
        exact=statistics.fmean(_reaches(record, EXACT_PSNR) for record in records),
        failures=sum(record.status in ("diverged", "refused") for record in records),
        remarks=_remarks(records),
        oracle_gap=statistics.fmean(gaps) if gaps else None,
        **columns,
        floor=floor,
        margin=margin,
        verdict=verdict,
        leads=kind == "attack" and _leads(attack, attacks),
        precision=", ".join(sorted({record.precision for record in records})),
        parity=max((record.parity for record in records), key=_FROM_BEST.index),
        gradient_evaluations=statistics.fmean(record.gradient_evaluations for record in records),
        seconds=statistics.fmean(record.seconds for record in records),
    )


def _remarks(records: Sequence[Record]) -> str | None:
    """Sentences with numbers of steps differ from image to image: numbers are left out."""
    told = Counter(re.sub(r"\d[\d,]*", "..", record.remark) for record in records if record.remark)
    most = sorted(told.items(), key=lambda found: (-found[1], found[0]))[:3]
    return "; ".join(f"{count} of {len(records)}: {words}" for words, count in most) or None


def _scores(images: Group) -> dict[Key, float]:
    return {key: record.psnr for key, record in images.items()}


def _successes(images: Group, success_psnr: float) -> dict[Key, float]:
    return {key: float(_reaches(record, success_psnr)) for key, record in images.items()}


def _reaches(record: Record, psnr: float) -> bool:
    return record.status == "ok" and record.psnr >= psnr


def _best_floor(attack: str, attacks: dict[str, Group]) -> str | None:
    """The highest floor on the images of `attack`; the prior alone is a floor only for the attack that uses it."""
    images = attacks[attack]
    owner = attack.removesuffix(" (wrong update)")
    means = {
        name: statistics.fmean(floor[key].psnr for key in images if key in floor)
        for name, floor in attacks.items()
        if kind_of(name) == "floor"
        and (not name.endswith(" prior alone") or name == f"floor: {owner} prior alone")
        and images.keys() & floor.keys()
    }
    return max(means, key=lambda name: (means[name], name), default=None)


def _leads(attack: str, attacks: dict[str, Group]) -> bool:
    """Whether no other attack is above this one by an interval that excludes zero."""
    others = [name for name in attacks if kind_of(name) == "attack" and name != attack]
    gains = [paired_difference(_scores(attacks[name]), _scores(attacks[attack])) for name in others]
    return not any(gain.low is not None and gain.low > 0 for gain in gains)


def _complete_mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if len(present) == len(values) else None


def _labels(records: list[Record], num_classes: int | None) -> dict[str, Interval | None]:
    """What is said of inferred labels, with intervals over updates; None where none is inferred."""
    updates: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        updates[record.update_id].append(record)
    names = [f"label_{name}" for name in LabelScores._fields]
    if all(record.label_inferred is None for record in records):
        return dict.fromkeys(names)
    scores = [
        label_scores([r.label for r in rows], [r.label_inferred for r in rows], num_classes=num_classes)
        for rows in updates.values()
        for _ in rows  # the score of an update stands for each of its images
    ]
    clusters = [update for update, rows in updates.items() for _ in rows]
    return {
        name: None if None in column else share_interval(column, clusters)
        for name, column in zip(names, zip(*scores, strict=True), strict=True)
    }


def _columns(row: Row) -> dict[str, Cell]:
    """Flatten the intervals of a row: `psnr` becomes `psnr`, `psnr_low` and `psnr_high`."""
    columns: dict[str, Cell] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if field.name in INTERVALS:
            low, high = (value.low, value.high) if value else (None, None)
            columns |= {
                field.name: value.value if value else None,
                f"{field.name}_low": low,
                f"{field.name}_high": high,
            }
        else:
            columns[field.name] = value
    return columns


INTERVALS = ("psnr", "success", "label_accuracy", "label_precision", "label_recall", "label_existence", "margin")
CSV_COLUMNS = tuple(
    column
    for field in fields(Row)
    for column in ([field.name, f"{field.name}_low", f"{field.name}_high"] if field.name in INTERVALS else [field.name])
)
