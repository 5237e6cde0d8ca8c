"""Run a suite: every job on every update, resumably, then the table and the report."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from rich.console import Console

from gibench.data import ImageDataModule
from gibench.errors import RecordError
from gibench.inversion import GradientInversion
from gibench.metrics import Floors, ImageQuality
from gibench.metrics.image_quality import AVAILABLE
from gibench.records import RunFolder, folder_name, read_manifest
from gibench.report import print_table, summarize, write_report, write_summary_csv
from gibench.runs.callbacks import Animation, ProgressBar, RecordWriter, Termination, write
from gibench.runs.configuration import Tree
from gibench.runs.estimate import in_words, seconds
from gibench.runs.manifest import digest, new_manifest, now, peak_memory
from gibench.runs.plan import Job
from gibench.scoring import Scorer
from gibench.types import Reconstruction

SUCCESS_PSNR = 20.0  # dB: from here on there is detail of 8 x 8 blocks (see the floors in the documentation)
LONG = 300.0  # seconds: from here on a run says beforehand what it will cost


class Run:
    """A run folder and what goes into it.

    Args:
        name, size, command: for the manifest.
        jobs: from `gibench.runs.plan.plan`.
        out: the folder; if it holds records of the same settings, what they cover is skipped.
        accelerator, precision: Lightning's.
        logger: Lightning's; None writes CSV files into the folder.
        download: whether LPIPS weights that are missing may be downloaded.
        console: where tables and progress go.

    Raises:
        RecordError: when the folder holds a run with other settings.
    """

    def __init__(
        self,
        *,
        name: str,
        size: str,
        command: str,
        jobs: Sequence[Job],
        out: Path,
        accelerator: str = "auto",
        precision: Any = "32-true",  # noqa: ANN401 - Lightning's own type is a union of forty literals
        logger: Logger | None = None,
        download: bool = True,
        console: Console,
    ) -> None:
        self.jobs = list(jobs)
        self.folder = RunFolder(out)
        self.accelerator, self.precision, self.logger = accelerator, precision, logger
        self.console = console
        self.quality = ImageQuality(download=download)
        self.floors: dict[str, Floors] = {}
        self.manifest = read_manifest(out) or new_manifest(
            name=name, size=size, command=command, metrics=self._metrics(), success_psnr=SUCCESS_PSNR
        )
        self._check_settings()

    def __call__(self) -> Path:
        """Do what is not done yet; return the folder."""
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        torch.backends.cudnn.allow_tf32 = False  # PyTorch's default rounds convolutions to 10 bits (rule R14)
        self.folder.save_manifest(self.manifest)
        if self.folder.records.torn:
            self.console.print("The last record was torn by a kill; it is set aside, and its update attacked again.")
        self._announce()
        for scenario in dict.fromkeys(job.scenario for job in self.jobs):
            jobs = [job for job in self.jobs if job.scenario == scenario]
            self._score_floors(max(jobs, key=lambda job: job.data.updates))
            for job in jobs:
                self._attack(job)
        self.manifest["finished"] = now()
        self.folder.save_manifest(self.manifest)
        rows = summarize(self.folder.records.records, success_psnr=SUCCESS_PSNR)
        write_summary_csv(rows, self.folder.path / "summary.csv")
        report = write_report(self.folder.path)
        print_table(rows, self.console)
        self.console.print(f"report: {report}", soft_wrap=True)
        return self.folder.path

    def _announce(self) -> None:
        """Say what a long run will cost."""
        costs = [seconds(job, self._open(job.data, job.scenario, job.name)) for job in self.jobs]
        if sum(costs) > LONG:
            searches = sum(cost > 0 for cost in costs)
            self.console.print(f"{searches} searches to run, {in_words(sum(costs))} at most on this machine.")

    def _open(self, data: ImageDataModule, scenario: str, name: str) -> int:
        """Let `data` skip what is recorded, and return how many updates are left."""
        finished = self.folder.records.finished(scenario, name, batch_size=data.batch_size)
        data.skip(finished)
        return sum(len(group.update_ids) for group in data.predict_dataloader())

    def _attack(self, job: Job) -> None:
        left = self._open(job.data, job.scenario, job.name)
        cell = self._cell(job)
        if not left:
            return
        groups = len(job.data.predict_dataloader())
        task = GradientInversion(
            job.client,
            job.attack,
            quality=self.quality,
            fallback=self._floors(job.data).mean,
            scenario=job.scenario,
            name=job.name,
        )
        trainer = lightning.Trainer(
            inference_mode=False,
            accelerator=self.accelerator,
            devices=1,
            precision=self.precision,
            logger=self.logger or self._csv_logger(job),
            callbacks=[
                Termination(),
                RecordWriter(self.folder),
                ProgressBar(self.console, f"{job.scenario} · {job.name}", groups),
                Animation(self.folder, job.scenario, job.name),
            ],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.predict(task, job.data, return_predictions=False)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C and SIGTERM
            raise KeyboardInterrupt from stop
        cell["device"] = str(trainer.strategy.root_device)
        cell["peak_memory_bytes"] = max(cell["peak_memory_bytes"], peak_memory(trainer.strategy.root_device))
        self._close(cell)

    def _score_floors(self, job: Job) -> None:
        """Score what content-free answers reach on the same images, through the same code (rule R5)."""
        left = self._open(job.data, job.scenario, "floor: mean image")
        if not left:
            return
        floors = self._floors(job.data)
        scorer = Scorer(scenario=job.scenario, quality=self.quality, fallback=floors.mean, seed=job.client.seed)
        labels_known = job.client.threat_model.labels in ("ordered", "counts")
        for batch in job.data.predict_dataloader():
            for name, images in floors(batch, labels_known=labels_known).items():
                nothing = torch.zeros(len(images))
                answer = Reconstruction(
                    images=images, labels=None, objective=nothing, gradient_evaluations=nothing.long()
                )
                write(self.folder, scorer(name, answer, batch, seconds=0.0))

    def _floors(self, data: ImageDataModule) -> Floors:
        """The floors of a data set; several scenarios share them."""
        source = digest([data.name, data.split_hashes()])
        if source not in self.floors:
            prior = data.split("prior")
            self.floors[source] = Floors(prior.images, prior.labels, seed=0)
        return self.floors[source]

    def _csv_logger(self, job: Job) -> CSVLogger:
        """Each start of a run logs into a folder of its own, because Lightning's logger empties the one it is given."""
        return CSVLogger(self.folder.path / "logs", name=folder_name(f"{job.scenario}-{job.name}"))

    def _cell(self, job: Job) -> Tree:
        """The manifest's entry of a job, made where it is new."""
        entries: list[Tree] = self.manifest["cells"]
        for entry in entries:
            if (entry["scenario"], entry["attack"]) == (job.scenario, job.name):
                return entry
        new: Tree = {
            "scenario": job.scenario,
            "attack": job.name,
            "configuration": job.configuration,
            "threat_model": job.client.threat_model.model_dump(),
            "victim": job.client.victim.fingerprint(),
            "data": job.data.describe(),
            "precision": str(self.precision),
            "device": None,
            "seconds": 0.0,
            "gradient_evaluations": 0.0,
            "peak_memory_bytes": 0,
        }
        entries.append(new)
        self.folder.save_manifest(self.manifest)
        return new

    def _close(self, cell: Tree) -> None:
        """Add up the cost of a job from its records."""
        records = [
            record
            for record in self.folder.records.records
            if (record.scenario, record.attack) == (cell["scenario"], cell["attack"])
        ]
        cell["seconds"] = sum(record.seconds for record in records)
        cell["gradient_evaluations"] = sum(record.gradient_evaluations for record in records)
        self.folder.save_manifest(self.manifest)

    def _metrics(self) -> dict[str, str]:
        """Each metric -> "available", or the first reason why its column is empty in some scenario."""
        reasons: dict[str, str] = {}
        for job in self.jobs:
            for name, why in self.quality.availability_for(job.data.image_shape).items():
                reasons[name] = why if reasons.get(name, AVAILABLE) == AVAILABLE else reasons[name]
        return reasons

    def _check_settings(self) -> None:
        recorded = {(cell["scenario"], cell["attack"]): cell for cell in self.manifest["cells"]}
        for job in self.jobs:
            cell = recorded.get((job.scenario, job.name))
            if cell is None:
                continue
            before = Job(job.scenario, job.name, job.data, job.client, job.attack, cell["configuration"]).identity
            if digest(before) != digest(job.identity) or cell["precision"] != str(self.precision):
                raise RecordError(
                    f"{self.folder.path} holds {job.scenario} x {job.name} with other settings; choose another --out."
                )
