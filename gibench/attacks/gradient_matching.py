"""Gradient matching: search the images whose simulated update explains the observed one. The engine of most attacks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.attacks.base import Attack
from gibench.errors import ConfigurationError, RefusalError
from gibench.labels import LabelSource
from gibench.likelihoods import Likelihood
from gibench.priors import Prior
from gibench.search import Objective, Pixels, Search
from gibench.search.objective import Guess, Variables
from gibench.seeding import derive, normal_rows
from gibench.types import Observation, Reconstruction
from gibench.victims import Victim

GIB = 2**30


class GradientMatching(Attack):
    """Minimize -log p(g | x) - log p(x) over images, and over soft labels where `labels` is None.

    Every row, that is every restart of every update, is an independent problem; rows are searched together in chunks
    that keep to the memory budget. The answer of a row is its iterate with the least objective. Among restarts the
    likelihood alone decides (Inverting Gradients), and all of them are returned, for the oracle gap (rule R2).

    Args:
        likelihood: -log p(g | x).
        priors: -log p(x), added up.
        search: the optimizer.
        labels: where the labels come from; None optimizes a soft label for each image, from N(0, 1) logits (DLG).
        pixels: how images are parametrized, started and bounded.
        restarts: independent starts for each update.
        memory_gib: budget for one chunk of rows.
    """

    differentiates = True

    def __init__(
        self,
        *,
        likelihood: Likelihood,
        priors: Sequence[Prior] = (),
        search: Search,
        labels: LabelSource | None,
        pixels: Pixels | None = None,
        restarts: int = 1,
        memory_gib: float = 4.0,
    ) -> None:
        super().__init__()
        if restarts < 1 or memory_gib <= 0:
            raise ConfigurationError(f"restarts is {restarts} and memory_gib {memory_gib}; both must be positive.")
        self.likelihood = likelihood
        self.priors = nn.ModuleList(priors)
        self.search = search
        self.labels = labels
        self.pixels = pixels or Pixels()
        self.restarts = restarts
        self.memory_gib = memory_gib
        self.needs = self.needs.also({"batch_size": ("known",)}).also(labels.needs if labels else {})

    def forward(self, observation: Observation) -> Reconstruction:
        """See `Attack`."""
        self.check(observation.threat_model)
        rows = [(restart, update) for restart in range(self.restarts) for update in range(observation.updates)]
        size = self.rows_at_once(observation)
        parts = [self._search(observation, rows[start : start + size]) for start in range(0, len(rows), size)]
        images, labels, match, evaluations = (
            torch.cat(part).unflatten(0, (self.restarts, -1)) for part in zip(*parts, strict=True)
        )
        # A failed restart (infinite) is chosen only where all have failed.
        chosen = match.argmin(0)
        update = torch.arange(observation.updates, device=chosen.device)
        return Reconstruction(
            images=images[chosen, update],
            labels=labels[chosen, update] if self.labels is None or self.labels.infers else None,
            objective=match[chosen, update],
            gradient_evaluations=evaluations.sum(0),
            candidates=images if self.restarts > 1 else None,
        )

    def rows_at_once(self, observation: Observation) -> int:
        """How many rows fit the memory budget together."""
        size = observation.known_batch_size()
        variables = size * (torch.Size(observation.image_shape).numel() + observation.num_classes)
        element = next(iter(observation.update.values())).element_size()
        row = observation.bytes_per_update + self.search.state_copies * variables * element
        if row > self.memory_gib * GIB:
            raise ConfigurationError(
                f"one update needs about {row / GIB:.2f} GiB, memory_gib allows {self.memory_gib}; raise it."
            )
        return int(self.memory_gib * GIB // row)

    def problem(self, observation: Observation, rows: Sequence[tuple[int, int]]) -> tuple[Objective, Variables]:
        """The objective of the given (restart, update) rows, and where their search starts."""
        observed = observation.select([update for _, update in rows])
        seeds = [derive(observation.seeds[update], "restart", restart) for restart, update in rows]
        victim = white_box(observed)
        start = {"pixels": self.pixels.start(observed, victim, seeds)}
        known = self.labels(observed) if self.labels else None
        if known is None:
            shape = (observed.known_batch_size(), observed.num_classes)
            start["logits"] = normal_rows(shape, seeds, "labels").to(start["pixels"])

        def decode(variables: Variables) -> Guess:
            labels = F.softmax(variables["logits"], 2) if known is None else known
            return Guess(self.pixels.decode(variables["pixels"], victim), labels)

        def project(variables: Variables) -> Variables:
            return {**variables, "pixels": self.pixels.project(variables["pixels"], victim)}

        priors = [prior for prior in self.priors if isinstance(prior, Prior)]
        objective = Objective(observed, likelihood=self.likelihood, priors=priors, decode=decode, project=project)
        return objective, start

    def _search(
        self, observation: Observation, rows: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Search rows together; return their images, labels, likelihoods and evaluation counts."""
        objective, start = self.problem(observation, rows)
        with torch.enable_grad():
            self.search(objective, start)
        images, labels = objective.decode(objective.best)
        images = images.clamp(0, 1)
        images[~objective.match.isfinite()] = torch.nan
        return images, labels if self.labels else labels.argmax(2), objective.match, objective.evaluations


def white_box(observation: Observation) -> Victim:
    """The victim of the observation, with its normalization."""
    if not isinstance(observation.victim, Victim):
        raise RefusalError("wrap the model in gibench.victims.Victim, which states its normalization and image shape.")
    return observation.victim
