"""Search the settings of each attack of a suite on the tune split, each attack with the same budget, resumably."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import cast

import optuna
import torch
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gibench.diagnostics import package_versions
from gibench.errors import RecordError
from gibench.precision import use
from gibench.runs.manifest import commit
from gibench.runs.spaces import Budget, Settings
from gibench.runs.suite import Cell
from gibench.runs.trials import Subject, subjects
from gibench.runs.tuned import purpose
from gibench.seeding import derive
from gibench.storage import storage, write_atomically

JOURNAL = "studies.journal"
TABLE = "trials.csv"


@dataclass(frozen=True)
class Trial:
    """A finished trial; number: its place among the finished ones of its study, from 1. psnr: mean over images, dB."""

    number: int
    psnr: float
    seconds: float
    settings: Settings


class Study:
    """The trials of one subject, kept in the journal.

    Suggestions depend on the seed, the names and the finished trials alone: the sampler is seeded anew for each trial,
    so that an interrupted tune goes on as an unbroken one would have. What a kill left unfinished is tried again.

    Raises:
        RecordError: when the journal holds trials with other settings.
    """

    def __init__(self, subject: Subject, journal: JournalStorage, *, out: Path) -> None:
        self.subject = subject
        self.study = optuna.create_study(
            storage=journal, study_name=subject.name, direction="maximize", load_if_exists=True
        )
        if self.study.user_attrs.get("identity", subject.identity) != subject.identity:
            raise RecordError(f"{out} holds trials of {subject.name} with other settings; choose another --out.")
        self.study.set_user_attr("identity", subject.identity)
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)

    def trials(self, most: int) -> list[Trial]:
        """Return the first `most` finished trials."""
        return [
            Trial(number, cast(float, trial.value), cast(timedelta, trial.duration).total_seconds(), trial.params)
            for number, trial in enumerate(self._finished()[:most], start=1)
        ]

    def advance(self) -> None:
        """Do one trial more; settings that came up before keep their score."""
        subject, finished = self.subject, self._finished()
        names = (subject.cell.scenario, subject.cell.attack)
        seed = derive(subject.problem.client.seed, "tune", *names, len(finished)) % 2**32
        self.study.sampler = optuna.samplers.TPESampler(seed=seed)
        if not finished and subject.default and not self.study.get_trials(states=(TrialState.WAITING,)):
            self.study.enqueue_trial(subject.default)
        trial = self.study.ask(subject.space)
        known = [old.value for old in finished if old.params == trial.params]
        score = known[0] if known else subject.problem.score(subject.build(trial.params))
        self.study.tell(trial, score)

    def _finished(self) -> list[FrozenTrial]:
        """In the order of their numbers; each has a value and a duration."""
        return self.study.get_trials(states=(TrialState.COMPLETE,))


def best(trials: Iterable[Trial]) -> Trial:
    """The trial with the highest PSNR, of equal ones the first."""
    return max(trials, key=lambda trial: (trial.psnr, -trial.number))


def open_journal(out: Path) -> JournalStorage:
    """Open the journal of a folder; a last line that a kill tore is dropped, and its trial done again.

    Raises:
        RecordError: when the journal is damaged otherwise.
        StorageError: when the folder cannot be written.
    """
    path = out / JOURNAL
    with storage(path):
        out.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
        try:
            return JournalStorage(JournalFileBackend(str(path)))
        except (ValueError, KeyError) as error:
            raise RecordError(f"{path} is damaged ({error}); choose another --out.") from error


class Tuning:
    """A folder of studies, one for each attack and scenario, and what was chosen in them.

    Args:
        name, size, command: for the file of chosen settings.
        cells: from `gibench.runs.suite.cells`, not tuned yet.
        budget: the same for each of them.
        out: the folder; if it holds trials of the same settings, they count.
        device: where trials compute.
        console: where lines and the table go.

    Raises:
        ConfigurationError, ThreatModelError, SecondDerivativeError: for what cannot be tuned, before the first trial.
        RecordError: when the folder holds trials with other settings.
    """

    def __init__(
        self,
        *,
        name: str,
        size: str,
        command: str,
        cells: Sequence[Cell],
        budget: Budget,
        out: Path,
        device: torch.device,
        console: Console,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        use("32-true", cuda=device.type == "cuda")
        self.name, self.size, self.command = name, size, command
        self.budget, self.out, self.console = budget, out, console
        found = subjects(cells, budget, device=device)
        journal = open_journal(out)
        self.studies = [Study(subject, journal, out=out) for subject in found]

    def __call__(self, write: Path) -> Path:
        """Do the trials that are missing, write the chosen settings to `write`, and return it."""
        try:
            for problem, studies in groupby(self.studies, key=lambda study: study.subject.problem):
                for study in studies:
                    self._finish(study)
                problem.forget()
        finally:
            self._write_trials()
        self._print()
        self.console.print(f"chosen settings: {self._write_chosen(write)}", soft_wrap=True, markup=False)
        return write

    def _finish(self, study: Study) -> None:
        """Bring a study to the budget, with a line for each trial."""
        most = self.budget.trials
        while len(study.trials(most)) < most:
            study.advance()
            trials = study.trials(most)
            last, leader = trials[-1], best(trials)
            self.console.print(
                f"{study.subject.name}: trial {last.number} of {most}, {last.psnr:.2f} dB in {last.seconds:.1f} s; "
                f"best so far {leader.psnr:.2f} dB, trial {leader.number}",
                soft_wrap=True,
                markup=False,
            )

    def _write_trials(self) -> None:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["scenario", "attack", "trial", "psnr", "seconds", "settings"])
        for study in self.studies:
            cell = study.subject.cell
            for trial in study.trials(self.budget.trials):
                settings = json.dumps(trial.settings)
                rows.writerow([cell.scenario, cell.attack, trial.number, trial.psnr, trial.seconds, settings])
        write_atomically(text.getvalue().encode(), self.out / TABLE)

    def _write_chosen(self, path: Path) -> Path:
        problems = {study.subject.cell.scenario: study.subject.problem for study in self.studies}
        provenance = {
            "command": self.command,
            "commit": commit(),
            "trials": self.budget.trials,
            "updates": self.budget.updates,
            "split": "tune",
            "split_hashes": {scenario: problem.tune_hash for scenario, problem in problems.items()},
            "images": {scenario: problem.images for scenario, problem in problems.items()},
            "versions": {**package_versions(), "optuna": optuna.__version__},
        }
        chosen: dict[str, dict[str, object]] = {}
        for study in self.studies:
            cell, leader = study.subject.cell, best(study.trials(self.budget.trials))
            entry = {
                "settings": leader.settings,
                "psnr": round(leader.psnr, 4),
                "trial": leader.number,
                "purpose": purpose(cell),
            }
            chosen.setdefault(cell.scenario, {})[cell.attack] = entry
        comment = f"# Written by `gibench tune` for {self.name}, size {self.size}; do not edit.\n"
        tree = yaml.safe_dump({"provenance": provenance, "chosen": chosen}, sort_keys=False, width=120)
        return write_atomically((comment + tree).encode(), path)

    def _print(self) -> None:
        table = Table(box=None, padding=(0, 1, 0, 0), width=min(100, self.console.width))
        for heading in ("scenario", "attack"):
            table.add_column(Text(heading, "dim"), overflow="fold")
        for heading in ("trials", "best, dB", "default, dB"):
            table.add_column(Text(heading, "dim"), justify="right", no_wrap=True)
        table.add_column(Text("settings", "dim"), ratio=1, overflow="fold")
        for study in self.studies:
            subject, trials = study.subject, study.trials(self.budget.trials)
            leader = best(trials)
            configured = [f"{trial.psnr:.2f}" for trial in trials if trial.settings == subject.default][:1]
            settings = ", ".join(f"{key} {_short(value)}" for key, value in leader.settings.items())
            names = [Text(subject.cell.scenario), Text(subject.cell.attack)]
            numbers = [str(len(trials)), f"{leader.psnr:.2f}", *(configured or ["-"])]
            table.add_row(*names, *numbers, Text(settings))
        self.console.print(table)
        self.console.print("PSNR on the tune split, which no score is taken from (rule R3).", style="dim", markup=False)


def _short(value: object) -> str:
    """Four digits of a number, everything else as YAML has it."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
