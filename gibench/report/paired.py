"""Attack against attack on the same images: images differ more than attacks, and pairing takes that out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gibench.metrics.intervals import Interval, paired_difference
from gibench.report.csv_file import write_csv
from gibench.report.summary import LEAST_UPDATES, Group, Row

COLUMNS = ("scenario", "attack", "other", "images", "difference", "low", "high")


@dataclass(frozen=True)
class Pair:
    """PSNR of `attack` minus that of `other` in dB, over the images that both have, with its 95 % interval."""

    scenario: str
    attack: str
    other: str
    difference: Interval

    @property
    def verdict(self) -> str:
        """Say in words what `attack` is in comparison; a tie is an interval that holds zero."""
        low, high = self.difference.low, self.difference.high
        if not self.difference.images:
            return "on no common image"
        if low is None or high is None or self.difference.clusters < LEAST_UPDATES:
            return "too few updates"
        return "better" if low > 0 else "worse" if high < 0 else "a tie within noise"


def pairs(rows: Sequence[Row], attacks: Mapping[str, Group], *, reference: str | None) -> list[Pair]:
    """Pair one attack of a scenario with each other one: no floors, no controls, and none that refused.

    Args:
        rows: of the scenario.
        attacks: its records, as `group` returns them.
        reference: the attack to pair; where it is None or not among those of the scenario, the one with the highest
            mean.

    Returns:
        The others from the highest mean to the lowest; none where there are fewer than two attacks.
    """
    tried = [row for row in rows if row.kind == "attack" and row.has_images]
    names = [row.attack for row in sorted(tried, key=lambda row: (-(row.psnr.value or 0.0), row.attack))]
    if len(names) < 2:
        return []
    first = reference if reference in names else names[0]
    scores = {name: {key: record.psnr for key, record in attacks[name].items()} for name in names}
    return [
        Pair(rows[0].scenario, first, other, paired_difference(scores[first], scores[other]))
        for other in names
        if other != first
    ]


def write_paired_csv(found: Sequence[Pair], path: Path) -> None:
    """Write one line per pair, in dB; without an interval its ends stay empty.

    Raises:
        StorageError: when the file cannot be written.
    """
    lines = [
        {
            "scenario": pair.scenario,
            "attack": pair.attack,
            "other": pair.other,
            "images": pair.difference.images,
            "difference": pair.difference.value,
            "low": pair.difference.low,
            "high": pair.difference.high,
        }
        for pair in found
    ]
    write_csv(COLUMNS, lines, path)
