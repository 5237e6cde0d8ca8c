"""Families: attacks that are one method at rising budgets, as one line each in quality against cost.

The suite says which attacks belong together. Costs are those of one image during the attack; what was computed before
it, such as the training of a network, stands beside.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from gibench.metrics.intervals import Interval
from gibench.records import folder_name
from gibench.report.budgets import Budget, budgets, compared_images, sentence
from gibench.report.csv_file import Cell, write_csv
from gibench.report.drawing import COLORS, markup, standalone
from gibench.report.families_chart import Level, Line, Point, common_ticks, draw_panel, side_by_side
from gibench.report.figures import best_floor
from gibench.report.summary import Group, Row
from gibench.report.trainings import offline, offline_seconds
from gibench.report.words import amount, signed
from gibench.storage import write_atomically

POINT_COLUMNS = (
    *("scenario", "family", "attack", "verdict", "images", "psnr", "psnr_low", "psnr_high"),
    *("gradient_evaluations", "seconds", "offline_seconds"),
)
BUDGET_COLUMNS = (
    *("scenario", "cost", "budget", "family", "attack", "images", "psnr", "psnr_low", "psnr_high"),
    *("behind", "behind_low", "behind_high", "standing"),
)
_LIMIT = "limit: "
"""How the names of rows begin that say what a prior can express at best, whatever the attack."""


class Scene(NamedTuple):
    """A scenario: its rows, its records, and its attacks in the manifest."""

    name: str
    rows: Sequence[Row]
    attacks: dict[str, Group]
    cells: Mapping[str, Mapping[str, Any]]


class _Cost(NamedTuple):
    """One horizontal axis: its column, its label, and how it is said of one attack."""

    column: str
    label: str
    unit: str
    of: Callable[[Row], float]


_COSTS = (
    _Cost(
        "gradient_evaluations", "gradient evaluations per image", "evaluations", lambda row: row.gradient_evaluations
    ),
    _Cost("seconds", "seconds per image", "seconds", lambda row: row.seconds),
)


@dataclass(frozen=True)
class Member:
    """One family in one scenario: the rows that are drawn, and the attacks that answer no images.

    offline: what was computed beforehand, in words; None where nothing is recorded.
    """

    label: str
    color: str
    rows: Sequence[Row]
    silent: Sequence[Row]
    offline: str | None


@dataclass(frozen=True)
class Families:
    """What the page shows of the families in one scenario.

    budgets: by gradient evaluations. images: how many the sentences and the table compare; `uneven` where an attack
    has others, too.
    """

    scenario: str
    members: Sequence[Member]
    figures: Sequence[Markup]
    sentences: Sequence[str]
    budgets: Sequence[Budget]
    images: int
    uneven: bool
    has_limit: bool


def collect_families(
    run_folder: Path, families: Mapping[str, Sequence[str]], scenes: Sequence[Scene]
) -> list[Families]:
    """Draw the families in each scenario that has records of them.

    The figures go into the run folder as `families-SCENARIO.svg`, what they show as `families.csv`, and what each
    budget buys as `budgets.csv`; nothing is written where there is nothing to show.

    Args:
        run_folder: of the run.
        families: label -> attacks, as the suite says.
        scenes: the scenarios.

    Raises:
        StorageError: when a file cannot be written.
    """
    found: list[Families] = []
    points: list[dict[str, Cell]] = []
    bought: list[dict[str, Cell]] = []
    for scene in scenes:
        members = _members(families, scene)
        drawn = [member for member in members if member.rows]
        if not drawn:
            continue
        shown = {cost.column: _budgets(drawn, scene, cost) for cost in _COSTS}
        points += [line for member in members for line in _point_lines(member, scene)]
        bought += [
            line
            for column, own in shown.items()
            for budget in own
            for line in _budget_lines(scene.name, column, budget)
        ]
        panels = _panels(drawn, scene)
        path = run_folder / f"families-{folder_name(scene.name)}.svg"
        write_atomically(standalone(side_by_side(panels), "families.css"), path)
        found.append(_told(scene, members, panels, shown))
    if found:
        write_csv(POINT_COLUMNS, points, run_folder / "families.csv")
        write_csv(BUDGET_COLUMNS, bought, run_folder / "budgets.csv")
    return found


def _members(families: Mapping[str, Sequence[str]], scene: Scene) -> list[Member]:
    """The families with records in a scenario; each has its color on the whole page."""
    by_name = {row.attack: row for row in scene.rows}
    members = []
    for index, (label, attacks) in enumerate(families.items()):
        rows = [by_name[attack] for attack in attacks if attack in by_name]
        if rows:
            members.append(
                Member(
                    label=label,
                    color=f"c{index % COLORS}",
                    rows=[row for row in rows if row.has_images],
                    silent=[row for row in rows if not row.has_images],
                    offline=offline([scene.cells.get(row.attack, {}) for row in rows]),
                )
            )
    return members


def _budgets(members: Sequence[Member], scene: Scene, cost: _Cost) -> list[Budget]:
    return budgets({member.label: member.rows for member in members}, scene.attacks, cost.of)


def _told(
    scene: Scene, members: Sequence[Member], panels: Sequence[Any], shown: Mapping[str, Sequence[Budget]]
) -> Families:
    """What the page says of a scenario beside its figure."""
    rows = [row for member in members for row in member.rows]
    images = len(compared_images(rows, scene.attacks))
    return Families(
        scenario=scene.name,
        members=members,
        figures=[markup(panel) for panel in panels],
        sentences=[
            sentence(shown[cost.column], unit=cost.label, free=any(cost.of(row) <= 0 for row in rows))
            for cost in _COSTS
        ],
        budgets=shown[_COSTS[0].column],
        images=images,
        uneven=any(row.images != images for row in rows),
        has_limit=any(level.kind == "limit" for level in _levels(scene.rows)),
    )


def _panels(members: Sequence[Member], scene: Scene) -> list[Any]:
    """One drawing per cost, all with the same vertical axis."""
    levels = _levels(scene.rows)
    drawings = [(cost.label, [_line(member, cost) for member in members]) for cost in _COSTS]
    ticks = common_ticks(drawings[0][1], levels)
    return [draw_panel(lines, levels, ticks, label=label) for label, lines in drawings]


def _line(member: Member, cost: _Cost) -> Line:
    points = [
        Point(
            cost.of(row),
            row.psnr,
            f"{member.label}, {row.attack}: {signed(row.psnr.value or 0.0)} dB, {amount(cost.of(row))} {cost.unit}",
        )
        for row in member.rows
    ]
    return Line(member.label, member.color, points)


def _levels(rows: Sequence[Row]) -> list[Level]:
    """The best floor, and what priors can express at best."""
    best = best_floor(rows)
    limits = [row for row in rows if row.attack.startswith(_LIMIT)]
    found = [("floor", best)] if best else []
    found += [("limit", row) for row in limits]
    return [Level(row.attack.removesuffix(" (oracle)"), row.psnr.value or 0.0, kind) for kind, row in found]


def _interval(name: str, interval: Interval | None) -> dict[str, Cell]:
    if interval is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _point_lines(member: Member, scene: Scene) -> list[dict[str, Cell]]:
    return [
        {
            "scenario": row.scenario,
            "family": member.label,
            "attack": row.attack,
            "verdict": row.verdict,
            "images": row.images,
            **_interval("psnr", row.psnr),
            "gradient_evaluations": row.gradient_evaluations,
            "seconds": row.seconds,
            "offline_seconds": offline_seconds([scene.cells.get(row.attack, {})]),
        }
        for row in (*member.rows, *member.silent)
    ]


def _budget_lines(scenario: str, column: str, budget: Budget) -> list[dict[str, Cell]]:
    return [
        {
            "scenario": scenario,
            "cost": column,
            "budget": budget.cost,
            "family": standing.family,
            "attack": standing.row.attack,
            "images": standing.psnr.images,
            **_interval("psnr", standing.psnr),
            **_interval("behind", standing.pair.difference if standing.pair else None),
            "standing": standing.words,
        }
        for standing in budget.standings
    ]
