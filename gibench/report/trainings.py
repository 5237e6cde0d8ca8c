"""What was computed before attacks, such as the training of their networks, as the manifest has it (rule R10)."""

from collections.abc import Mapping, Sequence
from typing import Any

from gibench.report.words import NO_BREAK, amount


def offline_seconds(cells: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds of all trainings together; None where one of them is not known."""
    costs = _trainings(cells)
    totals = [] if costs is None else [cost.get("total") for cost in costs.values()]
    known = [float(total) for total in totals if total is not None]
    return sum(known) if costs is not None and len(known) == len(totals) else None


def offline(cells: Sequence[Mapping[str, Any]]) -> str | None:
    """Say what was computed before the attacks; None where nobody recorded it."""
    costs = _trainings(cells)
    if costs is None:
        return None
    return "; ".join(_training(cost) for cost in costs.values()) or "nothing"


def _trainings(cells: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]] | None:
    """The trainings behind the attacks by their weights, each once; None where an attack's are not recorded at all."""
    if any("offline" not in cell for cell in cells):
        return None
    return {cost["weights"]: cost for cell in cells for cost in cell["offline"]}


def _training(cost: Mapping[str, Any]) -> str:
    if cost.get("seconds") is None:
        return "a training that is not recorded"
    known = cost.get("total")
    seconds = f"{amount(known)}{NO_BREAK}s" if known is not None else f"more than {amount(cost['seconds'])}{NO_BREAK}s"
    return f"{seconds} of training on {cost['images']:,} images"
