"""Running whole batches of an entry again, from what its record says of data, client, attack and seeds."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from gibench.engine import Choice
from gibench.errors import ConfigurationError, RecordError
from gibench.inversion import GradientInversion
from gibench.metrics import ImageQuality
from gibench.precision import use
from gibench.runs.plan import Job, plan
from gibench.runs.suite import Cell
from gibench.runs.yardsticks import Yardsticks
from gibench.types import Batch, Record
from leaderboard.provenance import Provenance
from leaderboard.schema import Data, Entry, Image
from leaderboard.store import Stored

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


def run_again(
    stored: Stored,
    run: Provenance,
    images: Sequence[Image],
    least: int,
    overrides: Sequence[str],
    device: str,
    *,
    groups: bool,
) -> list[Compared]:
    """Run a sample of `images` again, at least `least` of them; see `leaderboard.verify.verify` for the rest."""
    job = _job(stored.entry, run, overrides)
    chosen = _sample(images, least, stored.sha256)
    job.data.skip(set(job.data.update_ids()) - chosen)
    if job.attack.engine and run.engine:
        job.attack.engine.recall(Choice(**run.engine))
    where = device_of(device)
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
    if job.victim["weights_sha256"] != run.victim.weights_sha256:
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


def device_of(accelerator: str) -> str:
    """What Lightning will take: cuda, mps or cpu."""
    if accelerator == "mps":
        return "mps"
    return "cuda" if accelerator in ("auto", "gpu") and torch.cuda.is_available() else "cpu"
