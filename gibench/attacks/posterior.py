"""The posterior of one observation: what gradient matching compares, what it searches, and where it starts."""

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn import functional as F

from gibench.engine import Backend
from gibench.engine.memory import activations_per_image
from gibench.errors import ConfigurationError, RefusalError
from gibench.likelihoods import Hypothesis
from gibench.priors import Prior
from gibench.progress import untimed
from gibench.search import Adam, Ball, Given, Objective, Representation, Search, Stage
from gibench.search.evaluation import BALL, Guess, Known, Variables
from gibench.seeding import derive, normal_rows
from gibench.types import Observation, Reconstruction
from gibench.victims import Victim, rough_parts

if TYPE_CHECKING:
    from gibench.attacks.gradient_matching import GradientMatching

log = logging.getLogger("gibench")

PASS_COPIES = 3  # tensors of the size of the activations that a prior's pass of the victim holds

Row = tuple[int, int]
"""A restart of an update: (restart, update)."""


class Posterior(NamedTuple):
    """The parts of an attack, bound to an observation.

    attack: the parts. hypothesis: what it takes for the law of the updates. labels: (U, B) of the attack's label
    source, asked once for all rows and trials; None where labels are searched. initial: (U, B, C, H, W), from which the
    first restart of each update sets out; None where it starts as the others do.
    """

    attack: "GradientMatching"
    hypothesis: Hypothesis
    labels: Tensor | None
    initial: Tensor | None = None

    @classmethod
    def bind(cls, attack: "GradientMatching", observation: Observation) -> Self:
        """Check the parts against an observation, and ask the label source."""
        hypothesis = attack.likelihood.hypothesis(observation)
        bound = cls(attack, hypothesis, None)
        for prior in bound.priors:
            prior.check(observation)
        for stage in attack.stages:
            stage.pixels.check(observation)
        return bound._replace(labels=attack.labels(hypothesis.observation) if attack.labels else None)

    def onward(self, found: Reconstruction) -> Self:
        """Let the first restarts set out from the images of an answer."""
        expected = (self.observation.updates, self.observation.known_batch_size(), *self.observation.image_shape)
        if found.labels_only or found.images.shape != expected:
            answer = "labels alone" if found.labels_only else f"images {tuple(found.images.shape)}"
            raise ConfigurationError(
                f"the initial attack answers {answer}, where images {expected} are to start from; choose another one."
            )
        return self._replace(initial=found.images)

    @property
    def observation(self) -> Observation:
        """With what the attack simulates and compares."""
        return self.hypothesis.observation

    @property
    def simulations(self) -> int:
        """How many client updates the label source simulated to answer for one update."""
        return self.attack.labels.simulations(self.observation) if self.attack.labels else 0

    @property
    def priors(self) -> list[Prior]:
        """Those of the attack."""
        return [prior for prior in self.attack.priors if isinstance(prior, Prior)]

    @property
    def prior_numbers(self) -> int:
        """How many numbers the priors' own passes of the victim hold for a row."""
        passes = sum(prior.passes for prior in self.priors)
        if not passes:
            return 0
        each = activations_per_image(white_box(self.observation))
        return passes * PASS_COPIES * each * self.observation.known_batch_size()

    @property
    def rows(self) -> list[Row]:
        """All rows, those of one update after each other."""
        return [
            (restart, update) for update in range(self.observation.updates) for restart in range(self.attack.restarts)
        ]

    def objective(self, rows: Sequence[Row], backend: Backend) -> tuple[Objective, Variables]:
        """The objective of the given rows, and where their search starts."""
        seeds = self._seeds(rows)
        victim = white_box(self.observation)
        start = self._start(self.observation, victim, seeds)
        if self.initial is not None:
            start["pixels"] = self._warm(start["pixels"], self.initial, victim, rows)
        return self._objective(rows, backend, self.attack.pixels, {}), start

    def after(
        self, before: Objective, previous: Stage, stage: Stage, rows: Sequence[Row], backend: Backend
    ) -> tuple[Objective, Variables]:
        """The objective of a further stage of the same rows, and its start: the best that the one before found."""
        best = {name: value.detach() for name, value in before.best.items()}
        given = Given(before.decode(best).labels.detach(), before.kept)
        victim = white_box(self.observation)
        with torch.no_grad():
            variable, kept = stage.pixels.follow(previous.pixels, best["pixels"], victim, given)
        return self._objective(rows, backend, stage.pixels, kept), {**best, "pixels": variable}

    def _seeds(self, rows: Sequence[Row]) -> list[int]:
        return [derive(self.observation.seeds[update], "restart", restart) for restart, update in rows]

    def _objective(
        self, rows: Sequence[Row], backend: Backend, pixels: Representation, kept: dict[str, Tensor]
    ) -> Objective:
        attack, hypothesis = self.attack, self.hypothesis
        updates = sorted({update for _, update in rows})
        whole = len(updates) == self.observation.updates
        observed = self.observation if whole else self.observation.select(updates)
        owner = [updates.index(update) for _, update in rows]
        seeds = self._seeds(rows)
        victim = white_box(observed)
        known = None if self.labels is None else self.labels[[update for _, update in rows]]

        def decode(variables: Variables, known: Known) -> Guess:
            labels = F.softmax(variables["logits"], 2) if known.labels is None else known.labels
            return Guess(
                pixels.decode(variables["pixels"], victim, Given(labels, known.kept)),
                labels,
                {name: variables[name] for name in variables if name not in ("pixels", "logits")},
                pixels.penalty(variables["pixels"]),
            )

        def project(variables: Variables) -> Variables:
            return {**variables, "pixels": pixels.project(variables["pixels"], victim)}

        return Objective(
            observed,
            owner,
            backend=backend,
            likelihood=hypothesis.likelihood,
            priors=[prior.for_search() for prior in self.priors],
            decode=decode,
            project=project,
            labels=known,
            seeds=seeds,
            given={name: value[updates] for name, value in hypothesis.known.items()},
            kept=kept,
            penalized=pixels.penalized,
            draw=self._draw(seeds) if attack.ball or self._drawn else None,
        )

    @property
    def _drawn(self) -> bool:
        return self.hypothesis.hidden is not None and self.attack.hidden == "drawn"

    def _start(self, observed: Observation, victim: Victim, seeds: Sequence[int]) -> Variables:
        start = {"pixels": self.attack.pixels.start(observed, victim, seeds)}
        size, hidden = observed.known_batch_size(), self.hypothesis.hidden
        if self.attack.labels is None:
            start["logits"] = normal_rows((size, observed.num_classes), seeds, "labels").to(start["pixels"])
        if hidden is not None and not self._drawn:
            start[hidden.name] = start["pixels"].new_zeros(len(seeds), size, *hidden.shape)
        return start

    def _warm(self, start: Tensor, initial: Tensor, victim: Victim, rows: Sequence[Row]) -> Tensor:
        """Put what is known already in the place of the first restart's start, update by update where it is finite."""
        found = initial[[update for _, update in rows]].to(start)
        first = torch.tensor([restart == 0 for restart, _ in rows], device=start.device)
        warm = first & found.flatten(1).isfinite().all(1)
        warm = warm.reshape(-1, *[1] * (start.ndim - 1))
        return torch.where(warm, self.attack.pixels.encode(found.nan_to_num(), victim), start)

    def _draw(self, seeds: Sequence[int]) -> Callable[[Sequence[int], Sequence[int]], dict[str, Tensor]]:
        size, ball, hidden = self.observation.known_batch_size(), self.attack.ball, self.hypothesis.hidden

        def draw(rows: Sequence[int], evaluations: Sequence[int]) -> dict[str, Tensor]:
            own = [seeds[row] for row in rows]
            draws = {}
            if ball:
                draws[BALL] = ball.draw((size, *self.observation.image_shape), own, evaluations)
            if hidden and self._drawn:
                each = [derive(seed, hidden.name, count) for seed, count in zip(own, evaluations, strict=True)]
                draws[hidden.name] = normal_rows((size, *hidden.shape), each)
            return draws

        return draw


_SEEN: WeakSet[Victim] = WeakSet()


def warn_of_kinks(victim: Victim) -> None:
    """Say, once for a victim, what a least-squares search has to expect of one that is not smooth."""
    if victim in _SEEN:
        return
    with untimed():
        rough = rough_parts(victim)
    _SEEN.add(victim)
    if rough:
        log.warning(
            "%s is not smooth (%s%s): its update jumps where an activation flips, and a least-squares search from a "
            "random start gets stuck there; give it an initial attack, or a smooth victim.",
            victim.architecture,
            ", ".join(rough[:3]),
            ", .." if len(rough) > 3 else "",
        )


def check_coupled(priors: Sequence[Prior], search: Search, restarts: int, ball: Ball | None) -> None:
    """Raise ConfigurationError where restarts that a prior makes agree could not, or would not, come together."""
    if restarts < 2:
        raise ConfigurationError("a prior makes restarts agree, and there is one; raise restarts, or leave it out.")
    if ball:
        raise ConfigurationError("restarts that a prior makes agree are judged at the iterate; leave the ball out.")
    if not isinstance(search, Adam) or search.target is not None or search.patience is not None:
        raise ConfigurationError(
            "a prior makes restarts agree, so that all go on together; search by Adam without target and patience."
        )
    start = max(prior.start for prior in priors)
    if start >= search.steps:
        raise ConfigurationError(
            f"a prior begins after {start} of {search.steps} steps, and so would say nothing; let it start earlier."
        )


def white_box(observation: Observation) -> Victim:
    """The victim of the observation, with its normalization."""
    if not isinstance(observation.victim, Victim):
        raise RefusalError("wrap the model in gibench.victims.Victim, which states its normalization and image shape.")
    return observation.victim
