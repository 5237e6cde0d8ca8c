"""Run a suite: every job on every update, resumably, then the table and the report."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import Logger
from rich.console import Console

from gibench.data import ImageDataModule
from gibench.inversion import GradientInversion
from gibench.metrics import ErrorsInPictures, ImageQuality
from gibench.metrics.lpips import Net
from gibench.precision import use
from gibench.records import RunFolder, read_manifest
from gibench.report import print_table, summarize, write_report, write_summary_csv
from gibench.runs.callbacks import Animation, ProgressBar, RecordWriter, Termination, csv_logger, save_pictures
from gibench.runs.configuration import Tree
from gibench.runs.diagnosis import Spectra, diagnose
from gibench.runs.estimate import in_words, seconds
from gibench.runs.journal import Journal
from gibench.runs.limits import Limits, check_limits, note_limits
from gibench.runs.manifest import (
    add_up,
    availability,
    check_metrics,
    check_settings,
    find_cell,
    forget_peak_memory,
    go_on,
    leave_out,
    new_cell,
    new_manifest,
    note_engine,
    now,
    peak_memory,
    recall_engine,
)
from gibench.runs.media import Media
from gibench.runs.plan import Job
from gibench.runs.processes import Processes
from gibench.runs.traces import Tracer
from gibench.runs.yardsticks import Answers, Yardsticks
from gibench.scoring import Scorer

SUCCESS_PSNR = 20.0  # dB: from here on there is detail of 8 x 8 blocks (see the floors in the documentation)
LONG = 300.0  # seconds: from here on a run says beforehand what it will cost


class Run:
    """A run folder and what goes into it.

    Args:
        name, size, command, series, reference, families: for the manifest; the last three from the suite, where it has
            them.
        left_out: what is not scored or stored, of `gibench.runs.suite.METRICS`.
        diagnosed: how many updates of each scenario are diagnosed before they are attacked.
        limits: of each scenario, from `gibench.runs.limits.build_limits`.
        jobs: from `gibench.runs.plan.plan`.
        out: the folder; if it holds records of the same settings, what they cover is skipped.
        processes: they have joined already; each takes whole groups.
        precision: one of `gibench.precision.PRECISIONS`.
        logger: Lightning's; None writes CSV files into the folder.
        download: whether LPIPS weights that are missing may be downloaded.
        console: where tables and progress go; of several processes only the first one's is used.

    Raises:
        RecordError: when the folder holds a run with other settings.
    """

    def __init__(
        self,
        *,
        name: str,
        size: str,
        command: str,
        series: Tree,
        reference: str | None,
        families: dict[str, list[str]],
        left_out: Collection[str] = (),
        diagnosed: int = 0,
        limits: Limits | None = None,
        jobs: Sequence[Job],
        out: Path,
        processes: Processes,
        precision: str = "32-true",
        logger: Logger | None = None,
        download: bool = True,
        console: Console,
    ) -> None:
        self.processes, self.left_out, self.diagnosed = processes, left_out, diagnosed
        self.lightning_precision: Any = use(precision, cuda=processes.device.type == "cuda")
        self.jobs, self.limits = list(jobs), limits or {}
        check_limits(self.limits, self.jobs)
        self.folder = RunFolder(out)
        self.precision, self.logger = precision, logger
        self.console = console if self.processes.is_first else Console(quiet=True)
        self.yardsticks, self.spectra = Yardsticks(left_out), Spectra()
        with self.processes.first_before_others():
            lpips: tuple[Net, ...] = () if "lpips" in left_out else ("alex", "vgg")
            self.quality = ImageQuality(lpips=lpips, ssim="ssim" not in left_out, download=download)
            metrics = leave_out(availability(self.quality, self.jobs), left_out)
        if self.processes.is_first:
            begun = read_manifest(out)
            self.manifest = begun or new_manifest(
                name=name, size=size, command=command, metrics=metrics, success_psnr=SUCCESS_PSNR
            )
            self._continues = command if begun else None
            check_metrics(self.manifest, metrics, folder=out)
            self.manifest["series"] = {**self.manifest.get("series", {}), **series}
            self.manifest["reference"] = reference
            self.manifest["families"] = families
            check_settings(self.manifest, self.jobs, precision=precision, folder=out)
            note_limits(self.manifest, self.limits, folder=out)
        self.journal = Journal(self.folder, self.processes)

    def __call__(self) -> Path:
        """Do what is not done yet; return the folder."""
        if self.processes.is_first:
            self._begin()
        for scenario in dict.fromkeys(job.scenario for job in self.jobs):
            jobs = [job for job in self.jobs if job.scenario == scenario]
            if self.processes.is_first:
                largest = max(jobs, key=lambda job: job.data.updates)
                diagnose(self.folder.path, largest, updates=self.diagnosed, spectra=self.spectra, console=self.console)
                self._hold_against(largest)
            for job in jobs:
                self._attack(job)
        if self.processes.is_first:
            self._report()
        return self.folder.path

    def _begin(self) -> None:
        self.folder.save_manifest(self.manifest)
        if self.journal.torn:
            self.console.print("The last record was torn by a kill; it is set aside, and its update attacked again.")
        if self._announce() and self._continues:
            go_on(self.manifest, self._continues)
            self.folder.save_manifest(self.manifest)

    def _report(self) -> None:
        """Write the table and the page of what is recorded."""
        self.manifest["finished"] = now()
        self.folder.save_manifest(self.manifest)
        classes = {cell["scenario"]: cell["victim"]["num_classes"] for cell in self.manifest["cells"]}
        rows = summarize(self.folder.records.records, success_psnr=SUCCESS_PSNR, num_classes=classes)
        write_summary_csv(rows, self.folder.path / "summary.csv")
        report = write_report(self.folder.path)
        print_table(rows, self.console)
        self.console.print(f"report: {report}", soft_wrap=True)

    def _announce(self) -> int:
        """Say what a long run will cost, and which processes it leaves idle; return the updates that are left."""
        costs, groups, updates = [], [0], 0
        for job in self.jobs:
            recall_engine(job, find_cell(self.manifest, job))
            left = self._left(job.data, self._finished(job.data, job.scenario, job.name))
            updates += left
            groups.append(len(job.data.predict_dataloader()))
            turns = -(-groups[-1] // self.processes.count)
            costs.append(
                seconds(job, left, device=self.processes.device, precision=self.precision) * turns / max(1, groups[-1])
            )
        if sum(costs) > LONG:
            searches = sum(cost > 0 for cost in costs)
            self.console.print(f"{searches} searches to run, {in_words(sum(costs))} at most on this machine.")
        if 0 < max(groups) < self.processes.count:
            idle = self.processes.count - max(groups)
            self.console.print(f"{idle} of {self.processes.count} processes get no group of updates; lower `together`.")
        return updates

    def _finished(self, data: ImageDataModule, scenario: str, name: str) -> set[str]:
        return self.journal.finished(scenario, name, batch_size=data.batch_size)

    def _left(self, data: ImageDataModule, finished: set[str]) -> int:
        """Let `data` skip what is recorded, and return how many updates are left, of all processes together."""
        data.skip(finished)
        data.share(0, 1)
        return sum(len(group.update_ids) for group in data.predict_dataloader())

    def _attack(self, job: Job) -> None:
        """Attack what is left of a cell; every process takes its groups."""
        first = self.processes.is_first
        finished = self._finished(job.data, job.scenario, job.name) if first else set()
        left = self._left(job.data, self.processes.tell(finished))
        cell = self._cell(job) if first else {}
        self._settle_engine(job, cell)
        peaks = self.processes.collect(self._predict(job)) if left else []
        self.journal.merge(job.scenario, job.name, job.data.update_ids())
        if first and peaks:
            cell["device"], cell["processes"] = str(self.processes.device), self.processes.count
            note_engine(cell, job)
            cell["peak_memory_bytes"] = max(cell["peak_memory_bytes"], *peaks)
            add_up(cell, self.folder.records.records)
            self.folder.save_manifest(self.manifest)

    def _settle_engine(self, job: Job, cell: Tree) -> None:
        """Let all processes compute in the way that the first one chose, and note it before anything is recorded."""
        engine = job.attack.engine
        if engine is None:
            return
        choice = self.processes.tell(engine.choice)
        if choice is not None and not self.processes.is_first:
            engine.recall(choice)
        if self.processes.is_first:
            note_engine(cell, job)
            self.folder.save_manifest(self.manifest)

    def _predict(self, job: Job) -> int:
        """Attack this process's groups and return its peak memory in bytes."""
        job.data.share(self.processes.rank, self.processes.count)
        groups = len(job.data.predict_dataloader())
        floors = self.yardsticks.floors(job.data) if self.processes.is_first else None
        fallback, class_means = self.processes.tell((floors.mean, floors.class_means) if floors else (None, None))
        task = GradientInversion(
            job.client,
            job.attack,
            quality=self.quality,
            fallback=fallback,
            errors=ErrorsInPictures(class_means=class_means, lineup=self.yardsticks.lineup(job.data)),
            scenario=job.scenario,
            name=job.name,
        )
        first, names = job.data.update_ids()[0], (job.scenario, job.name)
        watchers = [
            ProgressBar(self.console, f"{job.scenario} · {job.name}", groups),
            Animation(self.folder, *names, first_update=first),
            Tracer(self.folder, *names, first_update=first),
        ]
        forget_peak_memory(self.processes.device)
        trainer = lightning.Trainer(
            inference_mode=False,
            precision=self.lightning_precision,
            logger=self.logger or csv_logger(self.folder, job.scenario, job.name),
            callbacks=[
                Termination(),
                *(watchers if self.processes.is_first else []),  # before the records: what is recorded has its trace
                RecordWriter(self.folder, self.journal.file_for(job.scenario, job.name), pictures=self._pictures),
                Media(),
            ],
            **self.processes.for_trainer(),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.predict(task, job.data, return_predictions=False)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C and SIGTERM
            raise KeyboardInterrupt from stop
        return peak_memory(self.processes.device)

    def _hold_against(self, job: Job) -> None:
        """Score what floors (rule R5) and limits reach on the same images, through the same code."""
        if self._left(job.data, self._finished(job.data, job.scenario, "floor: mean image")):
            self._score(job, self.yardsticks.answers(job))
        for name, limit in self.limits.get(job.scenario, {}).items():
            if self._left(job.data, self._finished(job.data, job.scenario, name)):
                self.console.print(f"{job.scenario}: {name}", style="dim", markup=False)
                self._score(job, self.yardsticks.limit(job, name, limit, self.processes.device))

    def _score(self, job: Job, groups: Iterable[Answers]) -> None:
        """Score and record yardsticks, group by group."""
        floors = self.yardsticks.floors(job.data)
        scorer = Scorer(
            scenario=job.scenario,
            quality=self.quality,
            fallback=floors.mean,
            seed=job.client.seed,
            errors=ErrorsInPictures(class_means=floors.class_means, lineup=self.yardsticks.lineup(job.data)),
        )
        for batch, answers, seconds_spent in groups:
            scored = [scorer(name, answer, batch, seconds=seconds_spent) for name, answer in answers.items()]
            for each in scored if self._pictures else ():
                save_pictures(self.folder, each)
            # All yardsticks of a group or, after a kill, none.
            self.folder.records.append([record for each in scored for record in each.records])

    @property
    def _pictures(self) -> bool:
        """Whether reconstructions are stored."""
        return "reconstructions" not in self.left_out

    def _cell(self, job: Job) -> Tree:
        """The manifest's entry of a job, made where it is new."""
        cell = find_cell(self.manifest, job)
        if cell is None:
            cell = new_cell(job, precision=self.precision)
            self.manifest["cells"].append(cell)
            self.folder.save_manifest(self.manifest)
        return cell
