"""What an evaluation of the objective takes and gives."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from gibench.engine.backends import NOTHING
from gibench.types import Observation, Update

BALL = "ball"

Variables = dict[str, Tensor]
"""What is searched: name -> (R, *shape), R rows of independent problems."""


def unknowns(variables: Variables) -> int:
    """How many numbers a row searches."""
    return sum(value[0].numel() for value in variables.values())


class Guess(NamedTuple):
    """What variables stand for: images (R, B, C, H, W) in pixels, labels (R, B) or probabilities (R, B, K).

    hidden: further arguments of the simulated update by name, (R, ...). penalty: rows (R, M) half of whose squares the
    representation adds to the objective; None adds nothing.
    """

    images: Tensor
    labels: Tensor
    hidden: Mapping[str, Tensor] = NOTHING
    penalty: Tensor | None = None


class Evaluation(NamedTuple):
    """value: (R,), likelihood and priors. gradient: its derivative, name -> (R, *shape)."""

    value: Tensor
    gradient: Variables


class Known(NamedTuple):
    """All tensors that an evaluation takes besides the variables: a traced evaluation gets them as arguments.

    update: observed, (R, *shape), or (U, *shape) where restarts share it. squares: their <g, g>.
    labels: (R, B), or None where they are searched. side: what priors may read, by the observation's field names.
    given: further arguments of the simulated update that are known, (R, ...). weight: factor on the likelihood, ().
    draws: what was drawn for this evaluation alone, (R, ...). kept: what the representation holds fixed, (R, ...).
    """

    update: Update
    squares: dict[str, Tensor]
    labels: Tensor | None
    side: dict[str, Any]
    given: dict[str, Tensor]
    weight: Tensor
    draws: dict[str, Tensor]
    kept: dict[str, Tensor] = {}  # noqa: RUF012 - never written to


class Rows(NamedTuple):
    """Some rows of the problem: their observation, without the update, and the tensors."""

    observation: Observation
    known: Known


def in_ball(guess: Guess, known: Known) -> tuple[Guess, Known, int]:
    """Return the points at which the guess is judged, in rows of their own, and how many there are for each row."""
    if BALL not in known.draws:
        return guess, known, 1
    draws = dict(known.draws)
    moves = draws.pop(BALL)
    samples = moves.shape[1]

    def spread(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.repeat_interleave(samples, 0) for name, value in tensors.items()}

    images = (guess.images[:, None] + moves).flatten(0, 1)
    penalty = None if guess.penalty is None else guess.penalty.repeat_interleave(samples, 0)
    judged = Guess(images, guess.labels.repeat_interleave(samples, 0), spread(guess.hidden), penalty)
    same = len(next(iter(known.update.values()))) == len(guess.images)  # else restarts share what is observed
    update, squares = (spread(each) if same else each for each in (known.update, known.squares))
    return (
        judged,
        known._replace(update=update, squares=squares, given=spread(known.given), draws=spread(draws)),
        samples,
    )
