"""Rows and threat models in words: what leaks in a scenario, what the attacker was given, how numbers are written."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gibench.metrics.intervals import Interval
from gibench.precision import TOLERANCE
from gibench.report.summary import Row

NO_BREAK = "\u00a0"

_KNOWLEDGE: dict[str, dict[str, str]] = {
    "server": {
        "honest": "The server is honest but curious",
        "malicious": "The server is malicious and chooses the weights",
    },
    "update": {
        "gradient": "it sees one gradient per client (FedSGD)",
        "fedavg": "it sees a local model per client (FedAvg)",
    },
    "local_steps": {
        "known": "the local steps and their rate are known",
        "unknown": "the local steps and their rate are unknown",
    },
    "batch_size": {"known": "the batch size is known", "unknown": "the batch size is unknown"},
    "labels": {
        "none": "nothing is known of the labels",
        "set": "it is known which labels occur",
        "counts": "it is known how often each label occurs",
        "ordered": "the labels are known",
    },
    "victim": {
        "initial": "the model has its initial weights",
        "trained": "the model is trained for some steps",
        "converged": "the model is trained to convergence",
    },
    "batch_norm": {
        "absent": "it has no BatchNorm",
        "eval": "its BatchNorm uses public running statistics",
        "private": "its BatchNorm uses the statistics of the private batch, which stay with the client",
        "shared": "its BatchNorm uses the statistics of the private batch, which are sent along",
    },
    "prior_data": {
        "none": "the attacker has no other images",
        "out_of_distribution": "the attacker has images from another distribution",
        "in_distribution": "the attacker has images from the same distribution",
    },
    "defense": {
        "none": "there is no defense",
        "known": "there is a defense, and its parameters are known",
        "unknown": "there is a defense, and its parameters are unknown",
    },
    "defense_randomness": {
        "known": "so is the randomness that it drew",
        "unknown": "the randomness that it drew is unknown",
    },
}


def threat_model_in_words(threat_model: Mapping[str, str]) -> str:
    """Say every flag that matters in one sentence; a value that is not known here is written as it stands."""
    silent = set()
    if threat_model.get("update") != "fedavg":
        silent.add("local_steps")
    if threat_model.get("defense", "none") == "none":
        silent.add("defense_randomness")
    flags = [flag for flag in _KNOWLEDGE if flag in threat_model and flag not in silent]
    flags += [flag for flag in threat_model if flag not in _KNOWLEDGE]
    said = [_KNOWLEDGE.get(flag, {}).get(threat_model[flag], f"{flag}: {threat_model[flag]}") for flag in flags]
    return "; ".join(said) + "." if said else "Not recorded."


def finding(rows: Sequence[Row], *, success_psnr: float) -> str:
    """Say in one sentence what leaks in one scenario; `rows` are those of that scenario."""
    attacks = sorted((row for row in rows if row.kind == "attack"), key=lambda row: -(row.psnr.value or 0.0))
    if not attacks:
        return "No attack is recorded yet."
    tried = [row for row in attacks if row.has_images]
    refused = [row.attack for row in attacks if row.verdict == "refused"]
    cannot = f"{listing(refused)} cannot attack this victim" if refused else ""
    labels = _labels(attacks)
    if not tried and not labels:
        return f"{cannot}; the records say why."
    best = _best(tried, success_psnr) if tried else ""
    inferred = f"{'of' if tried else 'Of'} the labels {labels}" if labels else ""
    return "; ".join(part for part in (best, inferred, cannot) if part) + "."


def _labels(attacks: Sequence[Row]) -> str:
    """Name the attack that infers most of the labels, and how many; nothing where none infers any."""
    inferring = [(row.label_accuracy.value, row.attack) for row in attacks if row.label_accuracy is not None]
    if not inferring:
        return ""
    share, name = max(inferring, key=lambda found: found[0] or 0.0)
    return f"{name} infers {percent(share)}{NO_BREAK}%"


def _best(attacks: Sequence[Row], success_psnr: float) -> str:
    """Say what the best of the attacks reaches, and which of the others leak as much or nothing."""
    leaking = [row for row in attacks if row.verdict in ("leak", "leak in part")]
    silent = [row.attack for row in attacks if row.verdict == "no leak measured"]
    best = (leaking or attacks)[0]
    reach = f"{best.attack} reaches {_in_decibels(best.psnr)} on average"
    if best.verdict is None:
        return f"{reach}; no floor is recorded yet to hold it against"
    if best.verdict == "too few updates":
        return f"{reach}; {best.updates} updates are too few for an interval, so nothing is concluded"
    if not leaking:
        return f"No leak measured: {reach}, as the best attack, and does not clear its floor ({_floor(best)})"
    share = (
        f"recovers {percent(best.success.value)}{NO_BREAK}% of {best.images:,} images to {success_psnr:g} dB or better"
    )
    if best.verdict == "leak in part":
        mean = f"its mean of {_in_decibels(best.psnr)} does not clear the floor ({_floor(best)})"
        said = f"{best.attack} {share}, although {mean}"
    else:
        said = f"{reach}, {_in_decibels(best.margin)} above the best floor ({_floor(best)}), and {share}"
    ties = [row.attack for row in leaking if row.leads and best.leads and row is not best]
    said += f"; {listing(ties)} {'is' if len(ties) == 1 else 'are'} within noise of it" if ties else ""
    return f"{said}; no leak measured with {listing(silent)}" if silent else said


def _in_decibels(interval: Interval | None) -> str:
    """Write "16.3 dB [15.9, 16.7]", kept on one line."""
    mean, _, ends = decibels(interval).partition(" ")
    return f"{mean} dB {ends}".rstrip().replace(" ", NO_BREAK)


def _floor(row: Row) -> str:
    """Name the floor of a row and its mean on the images of the row."""
    above = row.margin.value if row.margin else None
    value = (row.psnr.value or 0.0) - (above or 0.0)
    return f"{(row.floor or '').removeprefix('floor: ')}, {signed(value)} dB"


def doubt(row: Row) -> str | None:
    """Say why the precision of a row does not stand for 32-true (rule R14), or None where it does."""
    if row.parity == "untested":
        return f"{row.precision} was not held against 32-true on such a victim and device"
    if row.parity == "outside":
        return f"{row.precision} is not within {TOLERANCE:g} dB of 32-true on such a victim and device"
    return None


def batch(rows: Sequence[Row]) -> str:
    """Say how many images and updates a scenario has, from its fullest row."""
    fullest = max(rows, key=lambda row: row.images)
    size = fullest.images / fullest.updates
    images = f"{fullest.images:,} {'image' if fullest.images == 1 else 'images'}"
    updates = f"{fullest.updates:,} {'update' if fullest.updates == 1 else 'updates'}"
    return f"{images}, one per update" if size == 1 else f"{images} in {updates} of {size:.3g}"


def listing(names: Sequence[str]) -> str:
    """Join names as a sentence does."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def decibels(interval: Interval | None) -> str:
    """Write "16.3 [15.9, 16.7]", or the mean alone where there is no interval."""
    if interval is None or interval.value is None:
        return "–"
    mean = signed(interval.value)
    return mean if interval.low is None or interval.high is None else f"{mean} {bounds(interval)}"


def bounds(interval: Interval, scale: float = 1.0, digits: int = 1) -> str:
    """Write "[15.9, 16.7]", or nothing where there is no interval."""
    if interval.low is None or interval.high is None:
        return ""
    return f"[{signed(scale * interval.low, digits)}, {signed(scale * interval.high, digits)}]"


def signed(value: float, digits: int = 1) -> str:
    """Write a number with a true minus sign and never a negative zero."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def percent(share: float | None) -> str:
    """Write a share as whole percent; what is neither none nor all never reads 0 or 100."""
    if share is None:
        return "–"
    whole = round(100 * share)
    if (whole == 0 and share > 0) or (whole == 100 and share < 1):
        return "<1" if share < 0.5 else ">99"
    return str(whole)


def amount(value: float) -> str:
    """Write a cost with about three digits: 0.12, 3.4, 56, 4,800."""
    if 0 < value < 0.01:
        return "<0.01"
    digits = 0 if value >= 10 or value == 0 else 1 if value >= 1 else 2
    return f"{value:,.{digits}f}"


def offline(costs: Sequence[Mapping[str, Any]]) -> str:
    """Say what the training of an attack cost, as the manifest has it; nothing for an attack without weights."""
    return "; ".join(_training(cost) for cost in costs)


def _training(cost: Mapping[str, Any]) -> str:
    if cost.get("seconds") is None:
        return "weights whose training is not recorded"
    processors = cost["cpu_seconds"]
    of_processors = "" if processors is None else f" ({amount(processors)}{NO_BREAK}s of processors)"
    said = (
        f"{amount(cost['seconds'])}{NO_BREAK}s{of_processors} of training on "
        f"{cost['images']:,} images, {cost['examples']:,} examples in {cost['steps']:,} steps, "
        f"on {listing(cost['devices']) or 'an unknown device'}"
    )
    before = cost["seconds_before"]
    if before is None:
        return f"{said}, from weights whose training is not recorded"
    return f"{said}, from weights of {amount(before)}{NO_BREAK}s" if before else said


def multiple(value: float) -> str:
    """Write how many times something is something else: 0.92, 3.4, 56, 1.2e+07."""
    if not 0.01 <= value < 1e4:
        return f"{value:.1e}"
    return f"{value:,.{2 if value < 2 else 1 if value < 10 else 0}f}"


def error_in_decibels(mean_square: float) -> str:
    """Write a mean squared error of pixels in [0, 1] as a PSNR, without a ceiling."""
    return signed(-10 * math.log10(mean_square)) if mean_square > 0 else "∞"
