"""What a trial of `gibench tune` is: an attack with other settings, on tune images that were observed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from optuna.distributions import distribution_to_json
from torch import Tensor

from gibench.attacks import Attack
from gibench.clients import Client
from gibench.data import ImageDataModule
from gibench.data.splits import ids_hash
from gibench.diagnostics import probe_second_derivatives
from gibench.errors import ConfigurationError, RefusalError
from gibench.matching import match, reorder
from gibench.metrics import Floors, psnr
from gibench.precision import exact
from gibench.runs.configuration import Tree, digest, override
from gibench.runs.plan import Job, instantiate, parse, parser
from gibench.runs.spaces import Budget, Settings, Space, configured, corners
from gibench.runs.suite import Cell
from gibench.runs.tuned import options
from gibench.types import Observation


class Problem:
    """The tune images of a scenario: read and observed once, attacked in every trial.

    Args:
        data: with the tune split to attack; its score split is never read.
        client: makes the observations.
        device: where attacks compute.
    """

    def __init__(self, data: ImageDataModule, client: Client, device: torch.device) -> None:
        self.data, self.client, self.device = data, client, device
        data.prepare_data()
        data.setup()

    @cached_property
    def groups(self) -> list[tuple[Observation, Tensor]]:
        """What the server sees of each group of updates, and the private images (U, B, C, H, W) behind it."""
        client, dtype = self.client.to(self.device), self.client.victim.mean.dtype
        batches = [batch.to(dtype).to(self.device) for batch in self.data.predict_dataloader()]
        with exact(self.device.type):
            return [(client(batch), client.target(batch).images) for batch in batches]

    @cached_property
    def mean_image(self) -> Tensor:
        """(C, H, W), of the prior split: what a failed reconstruction scores as (rule R7)."""
        prior = self.data.split("prior")
        return Floors(prior.images, prior.labels, seed=0).mean

    def score(self, attack: Attack) -> float:
        """Mean PSNR over the tune images, dB; what is not finite, or refused, scores as the mean image."""
        attack = attack.to(self.device)
        scores = []
        for observation, private in self.groups:
            try:
                found = attack(observation).images
            except RefusalError:
                found = torch.full_like(private, torch.nan)
            failed = ~found.isfinite().flatten(2).all(2)
            if failed.any():
                found = torch.where(failed[..., None, None, None], self.mean_image.to(found), found)
            found = found.to(private)
            scores.append(psnr(reorder(found, match(found, private)).flatten(0, 1), private.flatten(0, 1)))
        return float(torch.cat(scores).mean())

    @property
    def tune_hash(self) -> str:
        """SHA-256 of the sorted ids of the tune split, as the manifest of a run has it."""
        return ids_hash(self.data.split("tune").ids)

    @property
    def images(self) -> int:
        """How many images each trial attacks."""
        return self.data.updates * self.data.batch_size

    def forget(self) -> None:
        """Let go of the observations."""
        self.__dict__.pop("groups", None)


@dataclass(frozen=True)
class Subject:
    """One attack on one scenario, and what may be tried.

    cell: on the tune split. default: the settings as configured, where they lie in the space. identity: a digest of all
        that the scores depend on.
    """

    cell: Cell
    problem: Problem
    space: Space
    default: Settings | None
    identity: str

    @property
    def name(self) -> str:
        """Of the study."""
        return f"{self.cell.scenario} x {self.cell.attack}"

    def build(self, settings: Settings) -> Attack:
        """Make the attack with `settings` laid over its configuration.

        Raises:
            ConfigurationError, ThreatModelError: for settings that the attack, or the threat model, does not allow.
        """
        attack = build(self.cell, settings)
        attack.check(self.problem.client.threat_model, self.cell.attack)
        return attack


def build(cell: Cell, settings: Settings) -> Attack:
    """Check a cell with `settings` laid over its attack, and build the attack; data and client are left out."""
    namespace = parse(cell, options(settings))
    namespace.data = namespace.client = None
    attack: Attack = instantiate(parser(), namespace).attack
    return attack


def subjects(cells: Sequence[Cell], budget: Budget, *, device: torch.device) -> list[Subject]:
    """Build every scenario, and check every attack, its space and its threat model, before the first trial.

    Returns:
        Those of one scenario in a row.

    Raises:
        ConfigurationError, ThreatModelError, SecondDerivativeError: naming the cell.
    """
    if missing := set(budget.spaces) - {cell.attack for cell in cells}:
        raise ConfigurationError(f"tune.spaces names {min(missing)!r}, which no cell attacks with; rename or drop it.")
    problems: dict[str, Problem] = {}
    found: list[tuple[str, Subject]] = []
    for cell in cells:
        if cell.attack not in budget.spaces:
            continue
        tree = override(cell, [f"--data.updates={budget.updates}", "--data.split_for_attack=tune"])
        tuned = Cell(cell.scenario, cell.attack, tree)
        configuration = parse(tuned, ()).as_dict()
        key = digest([cell.scenario, configuration["data"], configuration["client"]])
        if key not in problems:
            parts = instantiate(parser(), parse(tuned, ()))
            try:
                problems[key] = Problem(parts.data, parts.client, device)
            except ConfigurationError as error:
                raise ConfigurationError(f"the tune split of {cell.scenario}: {error}") from error
        found.append((key, _subject(tuned, problems[key], budget, configuration)))
    order = list(problems)  # what shares a problem comes together: it is observed once, and then let go of
    return [subject for _, subject in sorted(found, key=lambda pair: order.index(pair[0]))]


def _subject(cell: Cell, problem: Problem, budget: Budget, configuration: Tree) -> Subject:
    space = budget.spaces[cell.attack]
    where = f"{cell.scenario} x {cell.attack}"
    default = configured(space, configuration["attack"], where=where)
    attack = build(cell, default or {})
    job = Job(cell.scenario, cell.attack, problem.data, problem.client, attack, configuration)
    ranges = {key: distribution_to_json(kind) for key, kind in space.items()}
    depends = [job.identity, ranges, problem.data.update_ids(), problem.client.victim.fingerprint()]
    subject = Subject(cell, problem, space, default, digest(depends))
    for settings in corners(space):
        try:
            built = subject.build(settings)
        except ConfigurationError as error:
            raise ConfigurationError(f"tune.spaces.{cell.attack} allows {settings}: {error}") from error
    if built.differentiates:
        victim = problem.client.victim
        probe_second_derivatives(victim, victim.image_shape, victim.num_classes)
    return subject
