"""The limits that a suite names (see `gibench.metrics.limits`): read, built once, and checked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from gibench.errors import ConfigurationError, RecordError
from gibench.metrics import Limit
from gibench.runs.configuration import Tree, digest
from gibench.runs.plan import Job, instantiate
from gibench.runs.suite import Cell

Limits = Mapping[str, Mapping[str, Limit]]
"""Scenario -> name in the records -> what its private images are held against."""


def limit_name(name: str) -> str:
    """What the records call the limit `name` of a suite; see `gibench.report.summary.kind_of`."""
    return f"limit: {name} (oracle)"


def parse_limits(cells: Sequence[Cell]) -> dict[tuple[str, str], Namespace]:
    """Check what scenarios name: (scenario, name in the records) -> class and arguments.

    Raises:
        ConfigurationError: one line that names the scenario, the limit and the key.
    """
    nodes = {(cell.scenario, limit_name(name)): node for cell in cells for name, node in cell.limits.items()}
    return {where: _parse(node, where=" x ".join(where)) for where, node in nodes.items()}


def build_limits(cells: Sequence[Cell]) -> dict[str, dict[str, Limit]]:
    """Build what scenarios name, equal ones once.

    Raises:
        ConfigurationError: as `parse_limits`.
        GibenchError: what a constructor says, such as WeightsError.
    """
    built: dict[str, Limit] = {}
    found: dict[str, dict[str, Limit]] = {}
    for (scenario, name), namespace in parse_limits(cells).items():
        key = digest(namespace.as_dict())
        if key not in built:
            built[key] = instantiate(_parser(), namespace).limit
        found.setdefault(scenario, {})[name] = built[key]
    return found


def check_limits(limits: Limits, jobs: Sequence[Job]) -> None:
    """Raise ConfigurationError where a limit does not fit the images or the classes of its scenario."""
    for job in jobs:
        for limit in limits.get(job.scenario, {}).values():
            limit.check(job.data.image_shape, job.client.victim.num_classes)


def note_limits(manifest: Tree, limits: Limits, *, folder: Path) -> None:
    """Enter the limits of each scenario, where there are any.

    Raises:
        RecordError: `folder` holds one of them with other weights or settings.
    """
    for scenario, named in limits.items():
        for name, limit in named.items():
            fingerprint = limit.fingerprint()
            noted = manifest.setdefault("limits", {}).setdefault(scenario, {}).setdefault(name, fingerprint)
            if digest(noted) != digest(fingerprint):
                raise RecordError(
                    f"{folder} holds {scenario} x {name} with other weights or settings; choose another --out."
                )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--limit", type=Limit, help="what the private images are held against")
    return parser


def _parse(node: Any, *, where: str) -> Namespace:  # noqa: ANN401 - any YAML node
    try:
        namespace: Namespace = _parser().parse_object({"limit": node})
    except ArgumentError as error:
        raise ConfigurationError(f"{where}: {' '.join(str(error).split())}") from error
    return namespace
