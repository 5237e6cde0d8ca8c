"""The objective of gradient matching: -log p(g | x) - log p(x) for R rows at once, with its derivative and its best."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gibench.engine.backends import Backend, precise
from gibench.likelihoods import Likelihood
from gibench.likelihoods.products import inner
from gibench.priors import Prior
from gibench.search.evaluation import Evaluation, Guess, Known, Rows, Variables, in_ball
from gibench.types import Observation, Simulate, Update


class Objective:
    """Evaluates rows, counts the evaluations of each and keeps the best iterate of each.

    The best is the one with the least value, likelihood and priors together; its likelihood term alone is kept as
    `match`, by which restarts are compared, as Inverting Gradients does.

    Args:
        observation: of the updates that are attacked.
        owner: for each of R rows, the update in `observation` that it explains; rows of one update follow each other.
        backend: compares updates.
        likelihood, priors: the terms; a prior that couples restarts is this objective's own (`Prior.for_search`), and
            every evaluation is then of all rows.
        decode: (variables, known) -> Guess, differentiable.
        project: variables -> the nearest admissible variables.
        labels: (R, B) where they are known.
        seeds: R seeds for what a search draws at random; empty for one that draws nothing.
        given: further arguments of the simulated update by name, (U, ...).
        kept: what the representation holds fixed for each row, by name, (R, ...).
        penalized: whether guesses carry a penalty.
        draw: (rows, for each the number of its evaluation) -> random numbers by name, (r, ...): those that the
            simulated update takes, and `BALL`, (r, samples, B, C, H, W), by which the images are moved before they
            are judged; the figure is then the mean over the samples. None draws nothing.
    """

    def __init__(
        self,
        observation: Observation,
        owner: Sequence[int],
        *,
        backend: Backend,
        likelihood: Likelihood,
        priors: Sequence[Prior],
        decode: Callable[[Variables, Known], Guess],
        project: Callable[[Variables], Variables],
        labels: Tensor | None,
        seeds: Sequence[int] = (),
        given: Mapping[str, Tensor] | None = None,
        kept: Mapping[str, Tensor] | None = None,
        penalized: bool = False,
        draw: Callable[[Sequence[int], Sequence[int]], dict[str, Tensor]] | None = None,
    ) -> None:
        self.observation = observation
        self.owner = list(owner)
        self.backend = backend
        self.likelihood = likelihood
        self.priors = priors
        self.coupled = [prior for prior in priors if prior.couples]
        self.project = project
        self.labels = labels
        self.seeds = list(seeds)
        self.given = dict(given or {})
        self.kept = dict(kept or {})
        self.penalized = penalized
        self.draw = draw
        self._decode = decode
        first = next(iter(observation.update.values()))
        self.weight, self._last_weight = first.new_ones(()), 1.0
        self.value = first.new_full((len(self.owner),), torch.inf)
        self.match = self.value.clone()
        self.best: Variables = {}
        self.evaluations = torch.zeros(len(self.owner), dtype=torch.int64, device=first.device)
        self.improved = torch.zeros_like(self.evaluations)
        """The evaluation at which each row was last better than before."""
        self.searched = torch.ones_like(self.evaluations, dtype=torch.bool)
        """Rows that still count; what is evaluated of the others, to keep the shapes, changes nothing."""
        self.fast: Callable[[Variables, Known], tuple[Evaluation, Tensor]] | None = None
        """A compiled form of `evaluate`, for all rows together."""
        device = first.device.type
        self.autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        """The precision that surrounds the construction: the victim's passes run in it, whatever surrounds a call."""
        self.capture = draw is None and not self.coupled
        """Whether a search may replay its steps from captured kernels, where the device can."""
        self.remarks: list[str | None] = [None] * len(self.owner)
        """What a search has to say of a row."""
        self.refused: list[str | None] = [None] * len(self.owner)
        """Why a row was not searched."""
        self.all = self._rows(range(len(self.owner)))
        self._chosen: tuple[Tensor, Rows] | None = None

    def __call__(self, variables: Variables, rows: Tensor | None = None, *, slopes: bool = True) -> Evaluation:
        """Evaluate `rows` (r,), int64, of which `variables` are the values, or all; count them and keep their best.

        Args:
            variables: name -> (r, *shape).
            rows: which.
            slopes: whether the derivative is wanted; without, it is empty.
        """
        part, known = self.part(rows), self.known(rows)
        if self.coupled and self._advance(variables, part):
            self.value.fill_(torch.inf)  # as under another factor
        if not slopes:
            with torch.no_grad():
                value, match = self._judge(variables, known, part.observation)
            evaluation = Evaluation(value, {})
        elif rows is None and self.fast is not None:
            evaluation, match = self.fast(variables, known)
        else:
            evaluation, match = self.evaluate(variables, known, part.observation)
        self._keep(variables, evaluation.value, match, rows)
        return evaluation

    def _advance(self, variables: Variables, part: Rows) -> bool:
        """Let coupling priors see what is evaluated next; say whether that makes another objective."""
        with torch.no_grad(), precise(self.value):
            images = self._decode(variables, part.known).images
            return any([prior.advance(images, part.observation) for prior in self.coupled])  # noqa: C419 - all of them

    def evaluate(
        self, variables: Variables, known: Known, observation: Observation | None = None
    ) -> tuple[Evaluation, Tensor]:
        """Return values with derivatives, and the likelihood terms (r,); a pure function of the tensors."""
        with precise(self.value):
            leaves = {name: value.detach().requires_grad_() for name, value in variables.items()}
            value, match = self._judge(leaves, known, observation or self.all.observation)
            if value.requires_grad:
                gradients = torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True)
            else:  # neither likelihood nor prior says anything
                gradients = tuple(torch.zeros_like(leaf) for leaf in leaves.values())
        return Evaluation(value.detach(), dict(zip(leaves, gradients, strict=True))), match.detach()

    def _judge(self, variables: Variables, known: Known, observation: Observation) -> tuple[Tensor, Tensor]:
        """Values and likelihood terms (r,), differentiable."""
        observation = observation.model_copy(update=known.side)
        with precise(self.value):
            guess = self._decode(variables, known)
            judged, known, samples = in_ball(guess, known)
        if self.likelihood.reads == "nothing":
            match = self.likelihood({}, {"rows": self.value.new_zeros(len(judged.images))})
        else:
            arguments = {**judged.hidden, **known.given, **known.draws}
            with torch.autocast(self.value.device.type, self.autocast, enabled=self.autocast is not None):
                match = self.backend(
                    self.likelihood, judged.images, judged.labels, known.update, known.squares, arguments
                )
        with precise(self.value):
            if samples > 1:
                observation = observation.select([row for row in range(observation.updates) for _ in range(samples)])
            value = sum((prior(judged.images, observation) for prior in self.priors), start=known.weight * match)
            if judged.penalty is not None:
                value = value + judged.penalty.square().sum(1) / 2
            match, value = (each.unflatten(0, (-1, samples)).mean(1) for each in (match, value))
        return value, match

    def simulated(self, variables: Variables, known: Known, simulate: Simulate | None = None) -> Update:
        """Return the updates that variables would cause, (r, *shape), in the type of what `known` says was observed.

        Args:
            variables: of the rows that `known` is of.
            known: see `known`.
            simulate: the client's update in that type; None is that of the observation.
        """
        like = next(iter(known.update.values()))
        images, labels, hidden, _ = self._decode(variables, known)
        arguments = {name: value.to(like) for name, value in {**hidden, **known.given}.items()}
        labels = labels.to(like) if labels.is_floating_point() else labels
        return (simulate or self.observation.simulate)(images.to(like), labels, **arguments)

    def prior_residuals(self, variables: Variables, known: Known, observation: Observation) -> list[Tensor]:
        """Return each prior's rows, (r, M), and the representation's own."""
        images, *_, penalty = self._decode(variables, known)
        observation = observation.model_copy(update=known.side)
        found = [prior.residuals(images, observation) for prior in self.priors]
        return found if penalty is None else [*found, penalty]

    def count(self, row: int, evaluations: int) -> None:
        """Count what a search computes of a row besides its values: a product with the Jacobian is an evaluation."""
        self.evaluations[row] += evaluations

    def refuse(self, row: int, why: str) -> None:
        """Note that a row cannot be searched; its match is infinite, so that it is chosen last."""
        self.refused[row] = why
        self.match[row] = torch.inf

    def known(self, rows: Tensor | None = None) -> Known:
        """The tensors that the next evaluation of `rows`, or of all, takes; random numbers are drawn for it."""
        known = self.part(rows).known
        if self.draw is None:
            return known
        chosen = list(range(len(self.owner))) if rows is None else rows.tolist()
        draws = self.draw(chosen, self.evaluations[chosen].tolist())
        return known._replace(draws={name: value.to(self.value) for name, value in draws.items()})

    def reweigh(self, weight: float) -> None:
        """Set the factor on the likelihood; another factor makes another objective, whose best is still to be found."""
        if weight != self._last_weight:  # kept as it came: a float32 tensor has rounded it
            self._last_weight = weight
            self.weight.fill_(weight)
            self.value.fill_(torch.inf)

    def decode(self, variables: Variables, rows: Tensor | None = None) -> Guess:
        """What the values of `rows`, or of all, stand for."""
        return self._decode(variables, self.part(rows).known)

    def part(self, rows: Tensor | None) -> Rows:
        """The tensors of some rows; those of the last selection are kept, because searches repeat it."""
        if rows is None:
            return self.all
        chosen = self._chosen
        if chosen is None or not (chosen[0] is rows or torch.equal(chosen[0], rows)):  # `is` reads no device
            chosen = self._chosen = rows, self._rows(rows.tolist())
        return chosen[1]

    def _rows(self, rows: Sequence[int]) -> Rows:
        owners = [self.owner[row] for row in rows]
        labels = None if self.labels is None else self.labels[list(rows)]
        observation = self.observation.model_copy(update={"update": {}, "labels": None}).select(owners)
        observation = observation.model_copy(update={"labels": labels})  # what priors take for true
        updates = _shared(owners) if self.backend.shares_restarts else owners
        whole = updates == list(range(self.observation.updates))
        update = {name: value if whole else value[updates] for name, value in self.observation.update.items()}
        side = {
            name: getattr(observation, name)
            for name in ("labels", "label_counts", "batch_statistics")
            if getattr(observation, name) is not None
        }
        squares = {name: inner(value, value) for name, value in update.items()}
        given = {name: value[owners] for name, value in self.given.items()}
        kept = {name: value[list(rows)] for name, value in self.kept.items()}
        return Rows(observation, Known(update, squares, labels, side, given, self.weight, {}, kept))

    def _keep(self, variables: Variables, value: Tensor, match: Tensor, rows: Tensor | None) -> None:
        """Count, and keep what is better; in place, so that a captured graph of kernels does it too."""
        if not self.best:
            self.best = {
                name: tensor.new_zeros(len(self.owner), *tensor.shape[1:]) for name, tensor in variables.items()
            }
        where = slice(None) if rows is None else rows
        self.evaluations[where] += self.searched[where].long()
        better = (value < self.value[where]) & self.searched[where]  # false for NaN
        first = self.evaluations[where] == 1  # a row that never is finite keeps its start
        self.value[where] = torch.where(better, value, self.value[where])
        self.match[where] = torch.where(better, match, self.match[where])
        self.improved[where] = torch.where(better, self.evaluations[where], self.improved[where])
        for name, tensor in variables.items():
            chosen = (better | first).reshape(-1, *[1] * (tensor.ndim - 1))
            self.best[name][where] = torch.where(chosen, tensor.detach(), self.best[name][where])


def _shared(owners: list[int]) -> list[int]:
    """Return each update once where all have equally many rows in a row; else `owners` as they are."""
    updates = list(dict.fromkeys(owners))
    restarts = len(owners) // len(updates)
    return updates if owners == [update for update in updates for _ in range(restarts)] else owners
