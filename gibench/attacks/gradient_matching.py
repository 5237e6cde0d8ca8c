"""Gradient matching: search the images whose simulated update explains the observed one. The engine of most attacks."""

import gc
import sys
from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from gibench.attacks.back_end_trial import seconds_per_row
from gibench.attacks.base import Attack
from gibench.attacks.posterior import Posterior, Row, check_coupled, warn_of_kinks, white_box
from gibench.attacks.stages import Found, check_stages, make_ready, search_rows
from gibench.engine import Backend, Engine, Prepared
from gibench.engine.memory import is_out_of_memory
from gibench.errors import ConfigurationError
from gibench.labels import LabelSource
from gibench.likelihoods import Likelihood
from gibench.priors import Prior
from gibench.progress import unwatched
from gibench.search import Ball, Objective, Pixels, Representation, Search, Stage
from gibench.search.evaluation import Variables
from gibench.types import Observation, Reconstruction


class GradientMatching(Attack):
    """Minimize -log p(g | x) - log p(x) over images, and over soft labels where `labels` is None.

    Every row, that is every restart of every update, is an independent problem, unless a prior couples the restarts of
    an update (see `check_coupled`); rows are searched together in chunks that keep to the engine's memory budget. The
    answer of a row is its iterate with the least objective. Among restarts the likelihood alone decides (Inverting
    Gradients), and all of them are returned, for the oracle gap (rule R2).

    Args:
        likelihood: -log p(g | x); `gibench.defenses.Density` is that of the client's defense.
        priors: -log p(x), added up.
        search: the optimizer.
        labels: where the labels come from; None optimizes a soft label for each image, from N(0, 1) logits (DLG).
        pixels: how images are parametrized, started and bounded; None is `Pixels()`.
        then: further searches, each from where the one before ended (GIAS, GIFD). The answer of a row is that of the
            stage whose best iterate matches the update best, as restarts are chosen.
        initial: an attack from whose answer the first restart of each update sets out, as near as `pixels` can come to
            it; the other restarts, and updates that it has no answer for, start as `pixels` says. Its labels are not
            used, its gradient evaluations count.
        restarts: independent starts for each update.
        ball: where each iterate is judged; None is at the iterate itself.
        hidden: a random number inside the victim that the likelihood knows of, such as PRECODE's, is "searched" with
            the images, from 0 on, or "drawn" anew for each evaluation.
        engine: how it is computed.
    """

    differentiates = True

    def __init__(
        self,
        *,
        likelihood: Likelihood,
        priors: Sequence[Prior] = (),
        search: Search,
        labels: LabelSource | None,
        pixels: Representation | None = None,
        then: Sequence[Stage] = (),
        initial: Attack | None = None,
        restarts: int = 1,
        ball: Ball | None = None,
        hidden: Literal["searched", "drawn"] = "searched",
        engine: Engine | None = None,
    ) -> None:
        super().__init__()
        if hidden not in ("searched", "drawn"):
            raise ConfigurationError(f"hidden is {hidden!r}; choose 'searched' or 'drawn'.")
        if restarts < 1:
            raise ConfigurationError(f"restarts is {restarts}; an update is attacked at least once.")
        self.likelihood = likelihood
        self.priors = nn.ModuleList(priors)
        self.search = search
        self.labels = labels
        self.pixels: Representation = pixels or Pixels()
        self.then = nn.ModuleList(then)
        self.initial = initial
        self.restarts = restarts
        self.ball = ball if ball and ball.radius else None
        self.hidden = hidden
        self.engine: Engine = copy(engine) if engine else Engine()  # what it compiles is this attack's alone
        self.needs = self.needs.also({"batch_size": ("known",)}).also(labels.needs if labels else {})
        for needs in (
            likelihood.needs,
            *(stage.pixels.needs for stage in self.stages),
            initial.needs if initial else {},
            *(prior.needs for prior in priors),
        ):
            self.needs = self.needs.also(needs)
        self.coupled = any(prior.couples for prior in priors)  # whether the restarts of an update are one problem
        if self.coupled:
            check_coupled(priors, search, restarts, self.ball)
        check_stages(self.stages, fixed=not (self.ball or hidden == "drawn"), coupled=self.coupled, warm=bool(initial))
        self._last: tuple[Observation, Posterior] | None = None

    @property
    def stages(self) -> list[Stage]:
        """All searches in their order."""
        first = Stage(pixels=self.pixels, search=self.search)
        return [first, *(stage for stage in self.then if isinstance(stage, Stage))]

    def forward(self, observation: Observation) -> Reconstruction:
        """See `Attack`."""
        self.check(observation.threat_model)
        try:
            self.posterior(observation)  # what does not fit is said before the initial attack takes its time
            found = None
            if self.initial:
                with unwatched():
                    found = self.initial(observation)
            elif self.search.least_squares:
                warn_of_kinks(white_box(observation))
            return self._attack(observation, found)
        finally:
            self.release()

    def onward(self, observation: Observation, found: Reconstruction) -> Reconstruction:
        """Attack as `forward` does, from the images of an answer instead of from those of the initial attack.

        Args:
            observation: of the updates.
            found: for the same updates; its gradient evaluations count.
        """
        self.check(observation.threat_model)
        try:
            return self._attack(observation, found)
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the last observation."""
        self._last = None

    def _attack(self, observation: Observation, found: Reconstruction | None) -> Reconstruction:
        if found is not None:
            self._last = observation, self.posterior(observation).onward(found)
        prepared = self.prepare(observation)
        rows = self.posterior(observation).rows
        parts = []
        while rows:
            size = min(self.rows_at_once(observation, prepared), len(rows))
            part = self._search_if_memory_lasts(observation, rows[:size], prepared)
            if part is None:
                gc.collect()  # what did not fit is let go of
                self.engine.halve(prepared.choice, size)
            else:
                parts.append(part)
                rows = rows[size:]
        images, labels, match, evaluations = (
            torch.cat(part).unflatten(0, (-1, self.restarts)).transpose(0, 1)
            for part in list(zip(*parts, strict=True))[:4]
        )
        # A failed restart (infinite) is chosen only where all have failed.
        chosen = match.argmin(0)
        update = torch.arange(observation.updates, device=chosen.device)
        return Reconstruction(
            images=images[chosen, update],
            labels=labels[chosen, update] if self.labels is None or self.labels.infers else None,
            objective=match[chosen, update],
            gradient_evaluations=evaluations.sum(0).cpu()
            + self.posterior(observation).simulations
            + (0 if found is None else found.gradient_evaluations.cpu()),
            candidates=images if self.restarts > 1 else None,
            backend=None if self.likelihood.reads == "nothing" else str(prepared.choice),
            refused=self._of_chosen([each for part in parts for each in part.refused], chosen),
            remarks=self._of_chosen([each for part in parts for each in part.remarks], chosen, found),
        )

    def _of_chosen(
        self, words: list[str | None], chosen: Tensor, initial: Reconstruction | None = None
    ) -> tuple[str | None, ...] | None:
        """What is said of the chosen restart of each update, and of its start; None where nothing is."""
        said = [words[update * self.restarts + restart] for update, restart in enumerate(chosen.tolist())]
        if initial is not None:
            answered = initial.images.flatten(1).isfinite().all(1).tolist()
            cold = [None if warm else "the initial attack has no answer, so it started without" for warm in answered]
            said = ["; ".join(filter(None, pair)) or None for pair in zip(cold, said, strict=True)]
        return tuple(said) if any(said) else None

    def prepare(self, observation: Observation) -> Prepared:
        """Let the engine choose how this observation's rows are computed."""
        shape, size = observation.image_shape, observation.known_batch_size()
        entries = sum(value[0].numel() for value in observation.update.values())
        element = next(iter(observation.update.values())).element_size()
        posterior = self.posterior(observation)
        evaluations, held = 0, []
        for pixels, search in ((stage.pixels, stage.search) for stage in self.stages):
            unknown = size * (pixels.numbers(shape) + observation.num_classes)
            held.append(search.bytes_per_row(unknown, entries, element) + element * size * pixels.passing(shape))
            # Of least squares, values are few, and what they lose near zero would matter: the generic way serves.
            evaluations += 0 if search.least_squares else search.work(unknown)
        return self.engine.prepare(
            posterior.observation,
            posterior.hypothesis.likelihood,
            restarts=self.restarts,
            evaluations=observation.updates * self.restarts * evaluations,
            state_bytes=max(held)
            + element * posterior.prior_numbers
            + (self.ball.samples - 1 if self.ball else 0) * posterior.observation.bytes_per_update,
            trial=partial(seconds_per_row, self, observation),
        )

    def rows_at_once(self, observation: Observation, prepared: Prepared) -> int:
        """How many rows fit the memory budget together: whole updates, or parts of one that divide its restarts."""
        budget = self.engine.budget(next(iter(observation.update.values())).device)
        fitting = min(int(budget // prepared.row_bytes), prepared.choice.row_limit or sys.maxsize)
        if fitting >= self.restarts:
            return fitting - fitting % self.restarts
        if self.coupled:
            few = f"memory is there for {fitting} rows, and {self.restarts} coupled restarts are searched together"
            raise ConfigurationError(f"{few}; raise memory_gib, or take fewer restarts.")
        return max(part for part in range(1, fitting + 1) if self.restarts % part == 0)

    def posterior(self, observation: Observation) -> Posterior:
        """Bind the parts to an observation; the last one is kept."""
        if self._last is None or self._last[0] is not observation:
            self._last = observation, Posterior.bind(self, observation)
        return self._last[1]

    def problem(
        self, observation: Observation, rows: Sequence[Row], backend: Backend | None = None
    ) -> tuple[Objective, Variables]:
        """The objective of the given rows, and where their search starts; without a back end, the engine chooses."""
        return self.posterior(observation).objective(rows, backend or self.prepare(observation).backend)

    def ready(
        self, observation: Observation, rows: Sequence[Row], prepared: Prepared, *, searches: float = 1.0
    ) -> tuple[Objective, Variables]:
        """The problem of the given rows, in the form in which it is searched: compiled where that repays.

        Args:
            observation: of the updates.
            rows: some of them.
            prepared: how they are computed.
            searches: how many of this size there will be.
        """
        objective, start = self.problem(observation, rows, prepared.backend)
        return make_ready(self, objective, start, prepared, stage=0, searches=searches), start

    def _search_if_memory_lasts(
        self, observation: Observation, rows: Sequence[Row], prepared: Prepared
    ) -> Found | None:
        """Search rows together; None where several are too many."""
        try:
            return search_rows(self, self.posterior(observation), rows, prepared)
        except RuntimeError as error:
            if not is_out_of_memory(error) or len(rows) == 1:
                raise
            return None
