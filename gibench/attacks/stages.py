"""The search of some rows of gradient matching, stage after stage."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gibench.attacks.posterior import Posterior, Row
from gibench.engine import Prepared
from gibench.engine.backends import precise
from gibench.errors import ConfigurationError
from gibench.progress import part
from gibench.search import Objective, Stage
from gibench.search.evaluation import Variables, unknowns

if TYPE_CHECKING:
    from gibench.attacks.gradient_matching import GradientMatching


class Found(NamedTuple):
    """What the search of some rows found, all leading with the rows."""

    images: Tensor
    labels: Tensor
    match: Tensor
    evaluations: Tensor
    refused: list[str | None]
    remarks: list[str | None]


def search_rows(attack: "GradientMatching", posterior: Posterior, rows: Sequence[Row], prepared: Prepared) -> Found:
    """Search rows together, through all stages; the answer of each is that of the stage that matches best."""
    parts = [_answer(attack, objective) for objective in search_stages(attack, posterior, rows, prepared)]
    found = parts[0]
    for index, further in enumerate(parts[1:], 1):
        found = _better(found, further, index)
    return found


def search_stages(
    attack: "GradientMatching", posterior: Posterior, rows: Sequence[Row], prepared: Prepared
) -> Iterator[Objective]:
    """Search rows together, and yield the objective of each stage once its search has ended.

    In its `best` stands what the stage found, in the stage's own variable, such as a generator's weights.
    """
    stages = attack.stages
    lengths = [stage.search.steps for stage in stages]
    objective, start = posterior.objective(rows, prepared.backend)
    for index, stage in enumerate(stages):
        make_ready(attack, objective, start, prepared, stage=index)
        with torch.enable_grad(), precise(objective.value), part(sum(lengths[:index]), sum(lengths)):
            stage.search(objective, start)  # the search itself is never in mixed precision
        yield objective
        if index + 1 < len(stages):
            with precise(objective.value):
                objective, start = posterior.after(objective, stage, stages[index + 1], rows, prepared.backend)


def make_ready(
    attack: "GradientMatching",
    objective: Objective,
    start: Variables,
    prepared: Prepared,
    *,
    stage: int,
    searches: float = 1.0,
) -> Objective:
    """Have an objective compiled where that repays.

    Args:
        attack: whose engine compiles.
        objective: of some rows.
        start: where their search starts.
        prepared: how they are computed.
        stage: which search comes.
        searches: how many of this size there will be.
    """
    search = attack.stages[stage].search
    objective.capture &= attack.engine.compile != "off"
    if attack.coupled or not search.fixed_rows:
        why = "a prior couples restarts" if attack.coupled else "this search evaluates ever other numbers of rows"
        attack.engine.leave_uncompiled(prepared, why)
        return objective
    with torch.enable_grad(), precise(objective.value):
        objective.fast = attack.engine.compiled(
            prepared,
            objective.evaluate,
            start,
            objective.known(),
            evaluations=math.ceil(search.work(unknowns(start)) * searches),
            rows=len(objective.owner),
            stage=stage,
        )
    return objective


def check_stages(stages: Sequence[Stage], *, fixed: bool, coupled: bool, warm: bool) -> None:
    """Raise ConfigurationError where searches do not fit together, or not to what they are to search.

    Args:
        stages: in their order.
        fixed: whether the objective is the same function at each evaluation.
        coupled: whether a prior couples restarts.
        warm: whether an initial attack says where the first sets out.
    """
    if odd := [stage.search for stage in stages if stage.search.least_squares and not fixed]:
        raise ConfigurationError(
            f"{type(odd[0]).__name__} searches a fixed sum of squares; leave the ball out, search what is hidden."
        )
    if coupled and len(stages) > 1:
        raise ConfigurationError("a prior makes restarts agree over one search; leave the further stages out.")
    if warm and not stages[0].pixels.encodes:
        raise ConfigurationError(
            f"{type(stages[0].pixels).__name__} takes no warm start; leave the initial attack out."
        )
    for before, after in pairwise(stages):
        after.pixels.check_follows(before.pixels)


def _answer(attack: "GradientMatching", objective: Objective) -> Found:
    samples = attack.ball.samples if attack.ball else 1  # each is a gradient
    with torch.no_grad(), precise(objective.value):
        images, labels, *_ = objective.decode(objective.best)
    images = images.clamp(0, 1)
    images[~objective.match.isfinite()] = torch.nan
    labels = labels if attack.labels else labels.argmax(2)
    evaluations = objective.evaluations * samples
    return Found(images, labels, objective.match, evaluations, objective.refused, objective.remarks)


def _better(best: Found, found: Found, stage: int) -> Found:
    """The answer of a further stage where it matches better; evaluations add up, and what is said is kept."""
    better = found.match < best.match
    wide = better[:, None, None, None, None]
    told = zip(best.remarks, [text and f"stage {stage + 1}: {text}" for text in found.remarks], strict=True)
    return Found(
        images=torch.where(wide, found.images, best.images),
        labels=torch.where(better[:, None], found.labels, best.labels),
        match=torch.where(better, found.match, best.match),
        evaluations=best.evaluations + found.evaluations,
        refused=[first or second for first, second in zip(best.refused, found.refused, strict=True)],
        remarks=["; ".join(filter(None, pair)) or None for pair in told],
    )
