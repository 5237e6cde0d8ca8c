"""Running a sample of an entry again from the record alone, and scoring its stored pictures again (rule R19)."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from gibench import __version__
from gibench.engine import Choice
from gibench.errors import ConfigurationError, RecordError
from gibench.inversion import GradientInversion
from gibench.metrics import ImageQuality
from gibench.precision import use
from gibench.runs.manifest import commit, machine, now
from gibench.runs.plan import Job, plan
from gibench.runs.suite import Cell
from gibench.runs.yardsticks import Yardsticks
from gibench.storage import write_atomically
from gibench.types import Batch, Record
from leaderboard.reading import Problem
from leaderboard.schema import SCHEMA_VERSION, Data, Entry, Image, Provenance, Verification, Verifications
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

TOLERANCE = 0.5
"""dB: rule R14's, within which another machine or precision counts as the same."""


@dataclass(frozen=True)
class Compared:
    """One image, recorded and run again: status, PSNR in dB, and the inferred label."""

    image: Image
    status: str
    psnr: float
    label: int | None

    @property
    def difference(self) -> float:
        """This run minus the recorded one: in dB, or in percent of right labels where labels are the whole answer."""
        if self.image.status == "labels":
            return 100.0 * ((self.label == self.image.label) - (self.image.label_inferred == self.image.label))
        return self.psnr - self.image.psnr

    @property
    def agrees(self) -> bool:
        """Whether both say the same, within the tolerance."""
        if self.image.status == "labels":
            return self.label == self.image.label_inferred
        return abs(self.difference) <= TOLERANCE


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
        compared += _run_again(stored, run, wanted, share, overrides, device, groups=groups)
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
            **_signature(by, _device(device)),
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


def _run_again(
    stored: Stored,
    run: Provenance,
    images: Sequence[Image],
    least: int,
    overrides: Sequence[str],
    device: str,
    *,
    groups: bool,
) -> list[Compared]:
    job = _job(stored.entry, run, overrides)
    chosen = _sample(images, least, stored.sha256)
    job.data.skip(set(job.data.update_ids()) - chosen)
    if job.attack.engine and run.engine:
        job.attack.engine.recall(Choice(**run.engine))
    where = _device(device)
    precision: Any = use(run.precision, cuda=where == "cuda")
    task = GradientInversion(
        job.client,
        job.attack,
        quality=ImageQuality(lpips=(), ssim=False, download=False),
        fallback=Yardsticks(("identified", "nearest_image")).floors(job.data).mean,
        scenario=job.scenario,
        name=job.name,
    )
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # what hardware there is, and advice
    trainer = lightning.Trainer(
        inference_mode=False,
        precision=precision,
        accelerator=device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaded = job.data.predict_dataloader()
    batches = list(loaded) if groups else [_only(group, chosen) for group in loaded]
    scored: Any = trainer.predict(task, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    found: dict[tuple[str, int], Record] = {(r.update_id, r.position): r for group in scored for r in group.records}
    compared = []
    for image in images:
        if image.update_id not in chosen:
            continue
        again = found[image.update_id, image.position]
        if (again.seed, again.image_id, again.label) != (image.seed, image.image_id, image.label):
            raise RecordError(f"{image.image_id}: image, label or seed are not those of the record.")
        compared.append(Compared(image, again.status, again.psnr, again.label_inferred))
    return compared


def _job(entry: Entry, run: Provenance, overrides: Sequence[str]) -> Job:
    """Build what the record says, with what lies elsewhere here, and hold data and victim against their hashes."""
    if odd := [word for word in overrides if word.startswith("--attack")]:
        raise ConfigurationError(f"{odd[0]}: the attack is the record's; only --data and --client say where files lie.")
    tree = _without_download(run.configuration)
    job = plan([Cell(entry.scenario, entry.attack.name, tree)], overrides, None)[0]  # the others are its controls
    described = {key: value for key, value in job.data.describe().items() if key in Data.model_fields}
    if described != entry.data.model_dump(mode="json"):
        different = [key for key, value in entry.data.model_dump(mode="json").items() if described.get(key) != value]
        raise RecordError(f"the data here is not that of the record: {', '.join(different)} differ.")
    fingerprint = job.client.victim.fingerprint()
    if fingerprint["weights_sha256"] != run.victim.weights_sha256:
        raise RecordError(
            f"the victim's weights are not those of the record ({run.victim.weights_sha256[:12]}); train it as its "
            "suite says, or name the file with --client.victim.path FILE."
        )
    if job.client.threat_model != entry.threat_model:
        raise RecordError("the client's threat model is not that of the record.")
    return replace(job, name=entry.attack.name)


def _only(group: Batch, chosen: set[str]) -> Batch:
    """The chosen updates of a group: no result depends on which ones are attacked together."""
    rows = [row for row, name in enumerate(group.update_ids) if name in chosen]
    return Batch(
        images=group.images[rows],
        labels=group.labels[rows],
        image_ids=tuple(group.image_ids[row] for row in rows),
        update_ids=tuple(group.update_ids[row] for row in rows),
    )


def _sample(images: Sequence[Image], least: int, seed: str) -> set[str]:
    """Whole batches, drawn by the hash of the file, so that nobody can choose which ones are run again."""
    updates = sorted({image.update_id for image in images})
    random.Random(seed).shuffle(updates)  # noqa: S311 - no secret
    size = len(images) // len(updates)
    return set(updates[: max(1, -(-least // size))])


def _without_download(node: Any) -> Any:  # noqa: ANN401 - any configuration
    if isinstance(node, dict):
        return {key: False if key == "download" else _without_download(value) for key, value in node.items()}
    return [_without_download(value) for value in node] if isinstance(node, list) else node


def _device(accelerator: str) -> str:
    if accelerator == "mps":
        return "mps"
    return "cuda" if accelerator in ("auto", "gpu") and torch.cuda.is_available() else "cpu"


def _signature(by: str, device: str) -> dict[str, Any]:
    return {
        "by": by,
        "at": now(),
        "version": __version__,
        "commit": commit(),
        "machine": {**machine(), "device": device, "processes": 1},
    }
