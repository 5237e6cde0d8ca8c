"""What the page shows, as records: sections, scenarios, and one row per attack or floor."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from gibench.metrics.intervals import Interval
from gibench.report.summary import Verdict
from gibench.types import ThreatModel
from leaderboard.schema import Entry, Family
from leaderboard.store import Stored
from leaderboard.verifications import Verification

Checked = Literal["image by image", "on average", "not reproduced", "re-scored", "no"]
COLORS: dict[Family, str] = {family: f"c{index}" for index, family in enumerate(get_args(Family))}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attack on one scenario, with what it is held against.

    psnr, margin, success, labels, gap, control, behind: with 95 % intervals. margin: above the best floor on the same
    images. behind: paired difference to the best row of the scenario, on common images; None for that row.
    control: PSNR on another client's update, the prior's share (rule R6). gap: the oracle gap (R2). rank: 1 + how many
    rows are better beyond noise; None for rows that do not clear their floor, that have too few images, or that answer
    labels alone. tied: others have the same rank. exact, failed: shares of the images. checked: what `verify` found.
    """

    stored: Stored
    psnr: Interval
    median: float
    floor: str
    margin: Interval
    verdict: Verdict
    success: Interval
    exact: Interval
    ssim: float | None
    lpips_alex: float | None
    lpips_vgg: float | None
    labels: Interval | None
    gap: Interval | None
    control: Interval | None
    failed: float
    gradients: float
    seconds: float
    offline_seconds: float
    peak_memory_bytes: int
    behind: Interval | None = None
    rank: int | None = None
    tied: bool = False

    @property
    def entry(self) -> Entry:
        """What the row is of."""
        return self.stored.entry

    @property
    def name(self) -> str:
        """A name for files and addresses."""
        return self.stored.name

    @property
    def silent(self) -> bool:
        """Whether the row shows no leak, and is to look like it."""
        return self.verdict not in ("leak", "leak in part", "labels only")

    @property
    def answers_images(self) -> bool:
        """Whether there are images to look at, of which a paired difference says something."""
        return self.verdict not in ("refused", "labels only")

    @property
    def checked(self) -> Checked:
        """What the last verifications say."""
        found = self.stored.verifications.verifications if self.stored.verifications else ()
        again: list[Verification] = [each for each in found if each.kind == "re-run"]
        if again:
            return max(again, key=lambda each: each.at).outcome
        return "re-scored" if any(each.outcome != "not reproduced" for each in found) else "no"


@dataclass(frozen=True, kw_only=True)
class FloorRow:
    """A floor on all images of a scenario that any of its rows has."""

    name: str
    oracle: bool
    images: int
    psnr: Interval
    median: float
    success: Interval


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """The rows of one scenario, best first; `pairs` are paired differences of rows i < j, first minus second."""

    name: str
    label: str
    words: str
    rows: list[Row]
    floors: list[FloorRow]
    pairs: dict[tuple[int, int], Interval] = field(repr=False)

    @property
    def comparable(self) -> list[Row]:
        """The rows that answer images."""
        return [row for row in self.rows if row.answers_images]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One threat model and its scenarios."""

    name: str
    threat_model: ThreatModel
    scenarios: list[Scenario]
