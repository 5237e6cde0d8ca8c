"""From configurations to jobs: everything that a run will do is built and checked before anything is computed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from gibench.attacks import Attack, GradientMatching, UndoTransformation, WrongUpdate, prior_alone
from gibench.clients import Client
from gibench.data import ImageDataModule
from gibench.data.variants import Variant
from gibench.errors import ConfigurationError, GibenchError
from gibench.runs.configuration import PARTS, Tree, override
from gibench.runs.suite import Cell

_VARIANT = {each.name for each in fields(Variant)}


@dataclass(frozen=True)
class Job:
    """One attack, or one control, on one scenario.

    configuration: the resolved data, client and attack, in plain types.
    victim: the victim's fingerprint as it was built; a run in float64 makes its weights float64, the control's too.
    """

    scenario: str
    name: str
    data: ImageDataModule
    client: Client
    attack: Attack
    configuration: Tree = field(repr=False)
    victim: dict[str, str | int | float | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Take the fingerprint before anything runs."""
        object.__setattr__(self, "victim", self.client.victim.fingerprint())

    @cached_property
    def identity(self) -> Tree:
        """What results depend on: not where the data lies, how many updates there are, or how they are grouped."""
        tree = {name: dict(part) for name, part in self.configuration.items()}
        # The wrong-update control takes its partners from the group, so that there the grouping matters.
        harmless = {"root", "updates", "download"} | (
            {"together"} if not isinstance(self.attack, WrongUpdate) else set()
        )
        settings = tree["data"].get("init_args", {})
        tree["data"]["init_args"] = {
            name: value
            for name, value in settings.items()
            # Runs that were begun before data sets had variants do not say that they have none.
            if name not in harmless and (name not in _VARIANT or value is not None)
        }
        tree["attack"] = _without(tree["attack"], "memory_gib")  # how much memory it may take changes no result
        return tree


def _without(node: Any, name: str) -> Any:  # noqa: ANN401 - any configuration
    """Leave a setting out, however deep it stands."""
    if isinstance(node, list):
        return [_without(item, name) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _without(value, name) for key, value in node.items() if key != name}


def parser() -> ArgumentParser:
    """The parser of one cell: data, client and attack, each a class path with typed arguments."""
    cell = ArgumentParser(exit_on_error=False, add_help=False)
    cell.add_argument("--data", type=ImageDataModule, help="where private batches come from")
    cell.add_argument("--client", type=Client, help="what the client does with them")
    cell.add_argument("--attack", type=Attack, help="what the server makes of the update")
    return cell


def instantiate(of: ArgumentParser, namespace: Namespace) -> Any:  # noqa: ANN401 - jsonargparse's namespace
    """Build what a checked configuration says.

    Raises:
        GibenchError: what a constructor raised, which jsonargparse wraps where an argument has several types.
    """
    try:
        return of.instantiate(namespace)
    except ValueError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, GibenchError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from error


def parse(cell: Cell, overrides: Sequence[str]) -> Namespace:
    """Check one cell, with command-line overrides laid over it.

    Raises:
        ConfigurationError: one line that names the key.
    """
    try:
        checked: Namespace = parser().parse_object(override(cell, overrides))
    except ArgumentError as error:
        raise ConfigurationError(f"{cell.scenario} x {cell.attack}: {' '.join(str(error).split())}") from error
    missing = [key for key in PARTS if checked.get(key) is None]
    if missing:
        raise ConfigurationError(f"{cell.scenario} x {cell.attack}: {missing[0]} is empty; name its class_path.")
    return checked


def plan(cells: Sequence[Cell], overrides: Sequence[str], limit: int | None) -> list[Job]:
    """Build every job of a run, controls included, and check each attack against its threat model.

    Args:
        cells: from `gibench.runs.suite.cells`.
        overrides: command-line options such as --attack.steps 300, laid over every cell.
        limit: at most so many updates in each cell.
    """
    jobs = []
    for cell in cells:
        namespace = parse(cell, overrides)
        parts = instantiate(parser(), namespace)
        if limit is not None:
            parts.data.updates = min(parts.data.updates, limit)
        parts.attack.check(parts.client.threat_model, cell.attack)
        jobs += _with_controls(cell, parts, namespace.as_dict())
    return jobs


def _with_controls(cell: Cell, parts: Any, configuration: Tree) -> list[Job]:  # noqa: ANN401 - jsonargparse's namespace
    """The attack itself, what its prior answers alone (R5), and where asked for the wrong-update control (R6)."""
    attacks = {cell.attack: parts.attack}
    if (alone := _prior_alone(parts.attack)) is not None:
        attacks[f"floor: {cell.attack} prior alone"] = alone
    if cell.wrong_update:
        attacks[f"{cell.attack} (wrong update)"] = WrongUpdate(parts.attack)
    return [
        Job(cell.scenario, name, parts.data, parts.client, attack, configuration) for name, attack in attacks.items()
    ]


def _prior_alone(attack: Attack) -> Attack | None:
    """The attack without the update, where it has a prior that answers."""
    if isinstance(attack, UndoTransformation) and attack.attack.priors:
        return UndoTransformation(attack=prior_alone(attack.attack), noise=attack.noise, reach=attack.reach)
    return prior_alone(attack) if isinstance(attack, GradientMatching) and attack.priors else None
