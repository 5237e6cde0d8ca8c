"""The limit: the error that attacks reach under Gaussian noise, against the least that anybody can expect there.

For a series of scenarios that differ in the noise of their defense, and whose updates are diagnosed: mean squared
errors of attacks beside the Cramér-Rao bounds (see `gibench.diagnostics.cramer_rao`) of the same updates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from gibench.diagnostics import Identifiability, NoiseFloor, read_identifiability
from gibench.metrics.intervals import Interval, mean_interval
from gibench.records import folder_name
from gibench.report.csv_file import Cell, write_csv
from gibench.report.drawing import in_powers, markup, standalone
from gibench.report.identifiability import FILE
from gibench.report.limit_chart import Line, draw_limit
from gibench.report.summary import Group, kind_of
from gibench.report.words import listing
from gibench.storage import write_atomically

CLOSE = 2.0
"""An error within this factor of a bound counts as reaching it."""
COLUMNS = ("series", "sigma", "relative", "update", "attack", "mse", "least_mse", "least_mse_unbiased")
_MEAN_IMAGE = "floor: mean image"


class Answer(NamedTuple):
    """One update under one attack: its mean squared error, and the least expected ones (None where not known)."""

    update: str
    mse: float
    least: float
    unbiased: float | None


@dataclass(frozen=True)
class Reached:
    """What an attack reaches at one noise, over updates.

    mse: mean. of_least, of_unbiased: mean over updates of their error over their bound; None where it is not known.
    close: how many updates stay below `CLOSE` times their Bayesian bound.
    """

    attack: str
    answers: Sequence[Answer]
    mse: Interval
    of_least: Interval
    of_unbiased: Interval | None
    close: int


@dataclass(frozen=True)
class Level:
    """One noise: sigma in the units of the update, relative in those of its RMS entry (mean over updates).

    least, unbiased: mean bounds over the diagnosed updates. floor: mean squared error of the mean image on them.
    """

    sigma: float
    relative: float
    updates: int
    least: float
    unbiased: float | None
    floor: float | None
    reached: Sequence[Reached]


@dataclass(frozen=True)
class Limit:
    """What the page shows of a series. prior_variance: of the Bayesian bound."""

    name: str
    levels: Sequence[Level]
    attacks: Sequence[str]
    findings: Sequence[str]
    prior_variance: float
    figure: Markup


def collect_limits(
    run_folder: Path,
    series: Mapping[str, Sequence[str]],
    groups: Mapping[str, Mapping[str, Group]],
    colors: Mapping[str, str],
) -> list[Limit]:
    """Bring bounds and errors together for each series whose scenarios have noise of their own, of several strengths.

    The figure of each goes into the run folder as `limit-NAME.svg`, and all updates as `limit.csv`.

    Args:
        run_folder: with `identifiability.jsonl`.
        series: name -> its scenarios.
        groups: scenario -> attack -> records.
        colors: of the attacks.

    Raises:
        RecordError: the file is damaged.
        StorageError: a file cannot be written.
    """
    records = [record for record in read_identifiability(run_folder / FILE) if record.own_noise]
    found = {}
    for name, scenarios in series.items():
        own = [[record for record in records if record.scenario == scenario] for scenario in scenarios]
        levels = [_level(members, groups.get(members[0].scenario, {}), colors) for members in own if members]
        levels = sorted((level for level in levels if level.reached), key=lambda level: level.sigma)
        if len({level.sigma for level in levels}) > 1:
            found[name] = levels
    if not found:
        return []
    write_csv(
        COLUMNS, [line for name, levels in found.items() for line in _lines(name, levels)], run_folder / "limit.csv"
    )
    limits = []
    for name, levels in found.items():
        drawing = draw_limit(_curves(levels, colors))
        write_atomically(standalone(drawing), run_folder / f"limit-{folder_name(name)}.svg")
        attacks = sorted({reached.attack for level in levels for reached in level.reached})
        variance = next(record.prior_variance for record in records if record.scenario in series[name])
        said = [_finding(attack, levels) for attack in attacks]
        limits.append(Limit(name, levels, attacks, [*said, *_parting(levels)], variance, markup(drawing)))
    return limits


def _level(records: Sequence[Identifiability], attacks: Mapping[str, Group], colors: Mapping[str, str]) -> Level:
    floors = {record.update_id: record.floors[0] for record in records}
    unbiased = [bound for floor in floors.values() if (bound := _unbiased(floor)) is not None]
    reached = [_reached(attack, answers) for attack in colors if (answers := _answers(attacks.get(attack, {}), floors))]
    blind = [record.mse for (update, _), record in attacks.get(_MEAN_IMAGE, {}).items() if update in floors]
    return Level(
        sigma=records[0].floors[0].sigma,
        relative=_mean([floor.relative for floor in floors.values()]),
        updates=len(floors),
        least=_mean([_least(floor) for floor in floors.values()]),
        unbiased=_mean(unbiased) if len(unbiased) == len(floors) else None,
        floor=_mean(blind) if blind else None,
        reached=[each for each in reached if kind_of(each.attack) == "attack"],
    )


def _answers(group: Group, floors: Mapping[str, NoiseFloor]) -> list[Answer]:
    """The diagnosed updates that an attack was tried on; none where it refused them all."""
    if all(record.status in ("refused", "labels") for record in group.values()):
        return []
    members = sorted((update, record.mse) for (update, _), record in group.items() if update in floors)
    return [
        Answer(update, _mean([mse for _, mse in images]), _least(floors[update]), _unbiased(floors[update]))
        for update, images in groupby(members, key=lambda member: member[0])
    ]


def _reached(attack: str, answers: Sequence[Answer]) -> Reached:
    updates = [answer.update for answer in answers]
    ratios = [answer.mse / answer.unbiased for answer in answers if answer.unbiased]
    return Reached(
        attack=attack,
        answers=answers,
        mse=mean_interval([answer.mse for answer in answers], updates),
        of_least=mean_interval([answer.mse / answer.least for answer in answers], updates),
        of_unbiased=mean_interval(ratios, updates) if len(ratios) == len(answers) else None,
        close=sum(answer.mse <= CLOSE * answer.least for answer in answers),
    )


def _least(floor: NoiseFloor) -> float:
    return 10 ** (-floor.psnr / 10) if floor.mse is None else floor.mse


def _unbiased(floor: NoiseFloor) -> float | None:
    if floor.mse_unbiased is None and floor.psnr_unbiased is not None:
        return float(10 ** (-floor.psnr_unbiased / 10))
    return floor.mse_unbiased


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _lines(name: str, levels: Sequence[Level]) -> list[dict[str, Cell]]:
    return [
        {
            "series": name,
            "sigma": level.sigma,
            "relative": level.relative,
            "update": answer.update,
            "attack": reached.attack,
            "mse": answer.mse,
            "least_mse": answer.least,
            "least_mse_unbiased": answer.unbiased,
        }
        for level in levels
        for reached in level.reached
        for answer in reached.answers
    ]


def _curves(levels: Sequence[Level], colors: Mapping[str, str]) -> list[Line]:
    """The bounds first, so that what is reached lies on top of them; the mean image last."""
    lines = [
        Line("unbiased bound", "bound unbiased", [(level.sigma, level.unbiased) for level in levels if level.unbiased]),
        Line("Bayesian bound", "bound", [(level.sigma, level.least) for level in levels]),
        Line("mean image", "floor", [(level.sigma, level.floor) for level in levels if level.floor]),
    ]
    for attack, color in colors.items():
        own = [(level.sigma, each.mse) for level in levels for each in level.reached if each.attack == attack]
        lines.append(Line(attack, color, [(sigma, mse.value or 0.0) for sigma, mse in own], [mse for _, mse in own]))
    return [line for line in lines if line.points]


def _finding(attack: str, levels: Sequence[Level]) -> str:
    """Say at which noises an attack is within a factor of two of the Bayesian bound, above it, and below."""
    own = [(level.sigma, each.of_least.value) for level in levels for each in level.reached if each.attack == attack]
    kinds = [(sigma, _place(ratio or 0.0)) for sigma, ratio in own]
    runs = [(words, [sigma for sigma, _ in found]) for words, found in groupby(kinds, key=lambda kind: kind[1])]
    said = [
        f"{words} {'it' if place else 'the least expected error'} {_span(sigmas)}"
        for place, (words, sigmas) in enumerate(runs)
    ]
    return f"{attack} is {listing(said)}."


def _place(ratio: float) -> str:
    if ratio > CLOSE:
        return "above twice"
    return "within a factor of two of" if ratio >= 1 / CLOSE else "below half of"


def _span(sigmas: Sequence[float]) -> str:
    """Write "from σ = 10⁻⁶ to 10⁻²", or the only one."""
    first, last = (number(sigma) for sigma in (sigmas[0], sigmas[-1]))
    return f"at σ = {first}" if len(sigmas) == 1 else f"from σ = {first} to {last}"


def number(sigma: float) -> str:
    """Write 10⁻⁶ for a power of ten, and 0.003 for another number."""
    exponent = math.log10(sigma)
    return in_powers(sigma) if abs(exponent - round(exponent)) < 1e-9 else f"{sigma:g}"


def _parting(levels: Sequence[Level]) -> list[str]:
    """Say from which noise on the prior decides more than the update."""
    apart = [level.sigma for level in levels if level.unbiased is not None and level.unbiased > CLOSE * level.least]
    if not apart:
        return []
    return [f"From σ = {number(apart[0])} on the two bounds are more than a factor of two apart: the prior takes over."]
