"""What an attack cost before the first update (rule R10): as its submitter says, else as its training measured it."""

from collections.abc import Mapping
from typing import Any

from gibench.errors import RecordError
from gibench.report import words

LONGEST = 300  # letters of a text of an entry


def of(cell: Mapping[str, Any], about: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `offline_seconds` and `offline_what` of an entry.

    Args:
        cell: of the run's manifest; what it holds under `offline` stood in `cost.json` beside the weights.
        about: what the submitter says of the attack, which goes first.
        where: names the cell in errors.

    Raises:
        RecordError: the attack has trained weights, and neither says what they cost.
    """
    costs = cell.get("offline") or []
    measured = words.offline(costs).replace(words.NO_BREAK, " ")[:LONGEST] or None
    if "offline_seconds" in about:
        return {"offline_seconds": about["offline_seconds"], "offline_what": about.get("offline_what")}
    known = [float(cost["total"]) for cost in costs if cost.get("total") is not None]
    if len(known) < len(cell.get("attack_weights") or []):
        raise RecordError(
            f"{where} has trained weights, and no cost.json beside them said what they took; state offline_seconds in "
            "a file for --about."
        )
    return {"offline_seconds": float(f"{sum(known):.6g}"), "offline_what": about.get("offline_what", measured)}
