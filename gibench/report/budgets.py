"""Which family of attacks is best at a budget: on the same images, with ties (rule R8) and floors (rule R5)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from gibench.metrics.intervals import Interval, mean_interval, paired_difference
from gibench.report.families_chart import cost_in_words
from gibench.report.paired import Pair
from gibench.report.summary import Group, Key, Row
from gibench.report.words import NO_BREAK, listing, signed

_SLACK = 1 + 1e-9  # costs are means of floats: 1000.0000001 fits a budget of 1000


@dataclass(frozen=True)
class Standing:
    """The best that a family reaches within a budget.

    psnr: over the compared images. pair: the leading family's attack against this one on them; None for the leader.
    """

    family: str
    row: Row
    psnr: Interval
    pair: Pair | None

    @property
    def ties(self) -> bool:
        """Whether it cannot be told from the leader."""
        return self.pair is not None and self.pair.verdict == "a tie within noise"

    @property
    def words(self) -> str:
        """How it stands: best, tied, behind, or too few updates to tell."""
        if self.pair is None:
            return "best"
        return {"better": "behind", "a tie within noise": "tied"}.get(self.pair.verdict, self.pair.verdict)


@dataclass(frozen=True)
class Budget:
    """What a budget buys: the families that it pays for, the highest mean first."""

    cost: float
    standings: Sequence[Standing]

    def of(self, family: str) -> Standing | None:
        """Return the standing of a family, or None where the budget buys none of its attacks."""
        return next((standing for standing in self.standings if standing.family == family), None)

    @property
    def leads(self) -> list[str]:
        """The best family and those that tie with it."""
        return [standing.family for standing in self.standings if standing.pair is None or standing.ties]

    @property
    def leaks(self) -> bool:
        """Whether any family is above its floor, or nobody can tell."""
        return any(standing.row.verdict != "no leak measured" for standing in self.standings)

    @property
    def answer(self) -> tuple[object, ...]:
        """What is said of it; budgets with equal answers are said once."""
        verdicts = tuple(standing.pair.verdict for standing in self.standings if standing.pair)
        return self.leaks, self.leads, "too few updates" in verdicts


def decades_of(costs: Sequence[float]) -> list[float]:
    """Return the powers of ten at which the answer can change: from the first that buys anything to what buys all.

    Where something costs nothing, they begin one power below the cheapest of the others; 0 alone where all do.
    """
    positive = [cost for cost in costs if cost > 0]
    if not positive:
        return [0.0] if costs else []
    first, last = (math.ceil(math.log10(end) - 1e-9) for end in (min(positive), max(positive)))
    if len(positive) < len(costs):
        first -= 1
    return [float(f"1e{exponent}") for exponent in range(first, last + 1)]


def compared_images(rows: Sequence[Row], attacks: Mapping[str, Group]) -> frozenset[Key]:
    """Return the images that all of the attacks have."""
    keys = [attacks[row.attack].keys() for row in rows]
    return frozenset(keys[0]).intersection(*keys[1:]) if keys else frozenset()


def budgets(
    families: Mapping[str, Sequence[Row]], attacks: Mapping[str, Group], cost: Callable[[Row], float]
) -> list[Budget]:
    """Say for each decade of a cost what the families reach that it pays for, on the images that all attacks have.

    Args:
        families: label -> the rows of its attacks.
        attacks: the records of the scenario.
        cost: of a row.

    Returns:
        The budgets, rising; none where the attacks have no image in common.
    """
    rows = [row for members in families.values() for row in members]
    images = sorted(compared_images(rows, attacks))
    if not images:
        return []
    scores = {row.attack: {key: attacks[row.attack][key].psnr for key in images} for row in rows}
    clusters = [update for update, _ in images]
    means = {attack: mean_interval(list(found.values()), clusters) for attack, found in scores.items()}
    found = []
    for limit in decades_of([cost(row) for row in rows]):
        bought = {family: [row for row in own if cost(row) <= limit * _SLACK] for family, own in families.items()}
        found.append(Budget(limit, _standings(bought, scores, means)))
    return found


def _standings(
    bought: Mapping[str, Sequence[Row]],
    scores: Mapping[str, Mapping[Key, float]],
    means: Mapping[str, Interval],
) -> list[Standing]:
    """The families of which something is bought, each with its best attack, the highest mean first."""
    best = {
        family: max(rows, key=lambda row: means[row.attack].value or 0.0) for family, rows in bought.items() if rows
    }
    order = sorted(best, key=lambda family: -(means[best[family].attack].value or 0.0))
    standings: list[Standing] = []
    for family in order:
        first, row, pair = best[order[0]], best[family], None
        if standings:
            difference = paired_difference(scores[first.attack], scores[row.attack])
            pair = Pair(row.scenario, first.attack, row.attack, difference)
        standings.append(Standing(family, row, means[row.attack], pair))
    return standings


def sentence(found: Sequence[Budget], *, unit: str, free: bool) -> str:
    """Say in one sentence which family is best at which budget; budgets with equal answers share their words.

    Args:
        found: of `budgets`.
        unit: of the cost.
        free: whether some attack costs nothing.
    """
    runs = [list(members) for _, members in groupby(found, key=lambda budget: budget.answer)]
    if not runs:
        return f"By {unit}: no image is recorded under every attack yet."
    said = [f"{_span(place, runs, free=free)}: {_said(run)}" for place, run in enumerate(runs)]
    return f"By {unit}, {'; '.join(said)}."


def _span(place: int, runs: Sequence[Sequence[Budget]], *, free: bool) -> str:
    first, last = (cost_in_words(budget.cost) for budget in (runs[place][0], runs[place][-1]))
    if free and len(runs) == 1:
        return "at any budget"
    if place == len(runs) - 1:
        return f"from {first} on"
    if place == 0:
        return f"up to {last}"
    return f"at {first}" if first == last else f"from {first} to {last}"


def _said(run: Sequence[Budget]) -> str:
    """Name the leader, what it reaches, and who ties with it."""
    leaders = [budget.standings[0] for budget in run]
    means = list(dict.fromkeys(signed(leader.psnr.value or 0.0) for leader in leaders))
    said = [f"{means[0]} to {means[-1]}{NO_BREAK}dB" if len(means) > 1 else f"{means[0]}{NO_BREAK}dB"]
    if not run[0].leaks:
        said.append("no leak measured")
    if ties := run[0].leads[1:]:
        said.append(f"tied with {listing(ties)}")
    if run[0].answer[-1]:
        said.append("too few updates to tell")
    return f"{leaders[0].family} ({', '.join(said)})"
