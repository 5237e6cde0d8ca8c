"""Running a sample of an entry again from the record alone, and scoring its stored pictures again (rule R19)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gibench import __version__
from gibench.errors import RecordError
from gibench.runs.manifest import commit, machine, now
from gibench.storage import write_atomically
from leaderboard.reading import Problem
from leaderboard.rerun import TOLERANCE, Compared, device_of, run_again
from leaderboard.schema import SCHEMA_VERSION
from leaderboard.store import (
    PRIVATE,
    RESULTS,
    Stored,
    dump,
    picture_folder,
    rescored,
    squared_error,
    validate,
    verifications_of,
)
from leaderboard.trust import check_trusted
from leaderboard.verifications import Verification, Verifications


def verify(
    file: Path,
    *,
    images: int,
    by: str,
    overrides: Sequence[str] = (),
    trust: bool = False,
    device: str = "auto",
    groups: bool = False,
) -> tuple[list[Compared], Verification]:
    """Run whole batches of an entry again until `images` images are compared, a sample that the entry's hash draws.

    Args:
        file: of the entry.
        images: at least so many.
        by: who verifies.
        overrides: where data or weights lie here, such as --data.root DIR; they cannot change what is run, because
            data and victim are held against the hashes of the record.
        trust: build classes from elsewhere than gibench, too.
        device: auto, cpu, gpu or mps.
        groups: run the whole groups in which the batches were attacked together, so that even rounding is the same on
            the same machine; without it only the batches of the sample, which takes less time.

    Raises:
        RecordError: when the entry is invalid, or data, victim or seeds are not those of the record.
        ConfigurationError: for classes that are not trusted.
    """
    stored = load(file)
    compared: list[Compared] = []
    for index, run in enumerate(stored.entry.runs):
        if not trust:
            check_trusted(run.configuration)
        wanted = [image for image in stored.entry.images if image.run == index]
        share = -(-images // len(stored.entry.runs))
        compared += run_again(stored, run, wanted, share, overrides, device, groups=groups)
    differences = [each.difference for each in compared]
    agreed = sum(each.agrees for each in compared)
    average = sum(differences) / len(differences)
    finding = "image by image" if agreed == len(compared) else "on average"
    if finding == "on average" and abs(average) > TOLERANCE:
        finding = "not reproduced"
    return compared, Verification.model_validate(
        {
            "kind": "re-run",
            "whole_groups": groups,
            "measure": "labels, %" if compared[0].image.status == "labels" else "psnr, dB",
            "outcome": finding,
            "images": len(compared),
            "agreed": agreed,
            "mean_difference": round(average, 4),
            "largest_difference": round(max(map(abs, differences)), 4),
            "tolerance": TOLERANCE,
            **_signature(by, device_of(device)),
        }
    )


def rescore(file: Path, *, by: str) -> Verification:
    """Score the stored pictures of an entry again, against the stored private images.

    The tolerance is what 8 bits can tell: see `leaderboard.store.rescored`. Differences are given in dB.

    Raises:
        RecordError: when the entry is invalid, or stores no pictures.
    """
    stored = load(file)
    entry = stored.entry
    if not entry.pictures or entry.data.image_shape[0] not in (1, 3):
        raise RecordError(f"{file} stores no pictures that can be scored.")
    differences, agreed = [], 0
    for picture in entry.pictures:
        image = entry.images[picture.image]
        found, truth = picture_folder(stored.file) / picture.file, stored.file.parent / PRIVATE / picture.file
        mse = squared_error(found, truth)
        agreed += rescored(image, found, truth) is None
        again = 100.0 if mse == 0 else min(100.0, float(-10 * torch.log10(torch.tensor(mse, dtype=torch.float64))))
        # From 48 dB on, half a step of 8 bits is the whole error: there is nothing to tell.
        differences.append(0.0 if min(again, image.psnr) >= 48 else again - image.psnr)
    largest = max(map(abs, differences))
    average = sum(differences) / len(differences)
    tolerance = round(min(100.0, max(TOLERANCE, largest)), 4) if agreed == len(differences) else TOLERANCE
    outcome = "image by image" if agreed == len(differences) else "not reproduced"
    if outcome == "not reproduced" and abs(average) <= tolerance:
        outcome = "on average"
    return Verification.model_validate(
        {
            "kind": "re-score",
            "whole_groups": False,
            "measure": "psnr, dB",
            "outcome": outcome,
            "images": len(differences),
            "agreed": agreed,
            "mean_difference": round(average, 4),
            "largest_difference": round(largest, 4),
            "tolerance": tolerance,
            **_signature(by, "cpu"),
        }
    )


def note(file: Path, found: Sequence[Verification]) -> Path:
    """Write what was found beside the entry, behind what others found."""
    stored = load(file)
    before = stored.verifications.verifications if stored.verifications else ()
    whole = Verifications.model_validate(
        {"schema_version": SCHEMA_VERSION, "entry_sha256": stored.sha256, "verifications": (*before, *found)}
    )
    return write_atomically(dump(whole), verifications_of(stored.file))


def load(file: Path) -> Stored:
    """Read and check one entry.

    Raises:
        RecordError: with every problem.
    """
    root = RESULTS if file.resolve().is_relative_to(RESULTS.resolve()) else file.parent
    stored, problems = validate(root, [file]) if root == RESULTS else _alone(file)
    if problems or not stored:
        raise RecordError("; ".join(str(problem) for problem in problems[:10]) or f"{file} is no entry.")
    return stored[0]


def _alone(file: Path) -> tuple[list[Stored], list[Problem]]:
    return validate(file.parent / "nowhere", [file])


def _signature(by: str, device: str) -> dict[str, Any]:
    return {
        "by": by,
        "at": now(),
        "version": __version__,
        "commit": commit(),
        "machine": {**machine(), "device": device, "processes": 1},
    }
