"""The manifest of a run: what was run, on what, with which versions, and at what cost (rules R3, R10, R13)."""

import platform
import resource
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gibench.diagnostics import package_versions
from gibench.engine import Choice
from gibench.errors import RecordError
from gibench.metrics import ImageQuality
from gibench.metrics.image_quality import AVAILABLE
from gibench.runs.configuration import digest
from gibench.runs.plan import Job
from gibench.runs.suite import METRICS
from gibench.types import Record
from gibench.victims.offline import read_cost

LEFT_OUT = "left out by the suite."


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str | None:
    """The git commit of this checkout, marked where files differ from it; None outside a checkout."""
    folder = Path(__file__).parents[1]
    if not (folder.parent / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],  # noqa: S607 - the user's own git
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def machine() -> dict[str, Any]:
    """What the run stands on."""
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory(device: torch.device) -> int:
    """Peak bytes since `forget_peak_memory` on a CUDA device; elsewhere resident ones since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_memory(device: torch.device) -> None:
    """Measure the peak anew, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def check_settings(manifest: dict[str, Any], jobs: Sequence[Job], *, precision: str, folder: Path) -> None:
    """Raise RecordError if the manifest of `folder` has one of the jobs with other settings."""
    recorded = {(cell["scenario"], cell["attack"]): cell for cell in manifest["cells"]}
    for job in jobs:
        cell = recorded.get((job.scenario, job.name))
        if cell is None:
            continue
        before = replace(job, configuration=cell["configuration"]).identity
        if digest(before) != digest(job.identity) or cell["precision"] != precision:
            raise RecordError(f"{folder} holds {job.scenario} x {job.name} with other settings; choose another --out.")
        if cell["victim"] != job.victim:
            raise RecordError(f"{folder} holds {job.scenario} x {job.name} of another victim; choose another --out.")
        if cell.get("attack_weights", []) != attack_weights(job):
            raise RecordError(
                f"{folder} holds {job.scenario} x {job.name} of another trained attack; choose another --out."
            )


def availability(quality: ImageQuality, jobs: Sequence[Job]) -> dict[str, str]:
    """Each metric -> "available", or the first reason why its column is empty in some scenario."""
    reasons: dict[str, str] = {}
    for job in jobs:
        for name, why in quality.availability_for(job.data.image_shape).items():
            reasons[name] = why if reasons.get(name, AVAILABLE) == AVAILABLE else reasons[name]
    return reasons


def leave_out(metrics: dict[str, str], names: Collection[str]) -> dict[str, str]:
    """The availability with the reason for what the suite leaves out, of `gibench.runs.suite.METRICS`."""
    return metrics | {column: LEFT_OUT for name in sorted(names) for column in METRICS[name]}


def check_metrics(manifest: dict[str, Any], metrics: dict[str, str], *, folder: Path) -> None:
    """Raise RecordError if the run of `folder` left out something else: its columns would be half empty."""
    before, after = ({name for name, why in of.items() if why == LEFT_OUT} for of in (manifest["metrics"], metrics))
    if before != after:
        raise RecordError(
            f"{folder} holds a run in which the suite leaves out {', '.join(sorted(before)) or 'no metric'}, now it is "
            f"{', '.join(sorted(after)) or 'none'}; choose another --out."
        )


def find_cell(manifest: dict[str, Any], job: Job) -> dict[str, Any] | None:
    """The manifest's entry of a job, where it has one."""
    cells: list[dict[str, Any]] = manifest["cells"]
    return next((cell for cell in cells if (cell["scenario"], cell["attack"]) == (job.scenario, job.name)), None)


def attack_weights(job: Job) -> list[str]:
    """SHA-256 of the files of weights that the attack and its parts were loaded from."""
    return sorted(sha256 for sha256, _ in _loaded(job))


def offline_costs(job: Job) -> list[dict[str, Any]]:
    """What it took to train each file of `attack_weights` (rule R10); "seconds" is None where nothing says so.

    Raises:
        WeightsError: the record beside a file is damaged.
    """
    found = {}
    for sha256, path in _loaded(job):
        cost = None if path is None else read_cost(path, sha256)
        told = {"seconds": None} if cost is None else cost.model_dump(exclude={"weights"}) | {"total": cost.total}
        found[sha256] = {"weights": sha256, **told}
    return [found[sha256] for sha256 in sorted(found)]


def _loaded(job: Job) -> Iterator[tuple[str, Path | None]]:
    """SHA-256 and path of the file of each part of the attack that was loaded from one."""
    for module in job.attack.modules():
        sha256, path = getattr(module, "weights_sha256", None), getattr(module, "weights_path", None)
        if sha256 is not None:
            yield str(sha256), None if path is None else Path(path)


def new_cell(job: Job, *, precision: str) -> dict[str, Any]:
    """The entry of a job that has not begun."""
    return {
        "scenario": job.scenario,
        "attack": job.name,
        "configuration": job.configuration,
        "threat_model": job.client.threat_model.model_dump(),
        "victim": job.victim,
        "attack_weights": attack_weights(job),
        "offline": offline_costs(job),
        "data": job.data.describe(),
        "precision": precision,
        "device": None,
        "processes": 1,
        "engine": None,
        "seconds": 0.0,
        "gradient_evaluations": 0.0,
        "peak_memory_bytes": 0,
    }


def note_engine(cell: dict[str, Any], job: Job) -> None:
    """Enter what the attack's engine chose, where it has."""
    if job.attack.engine and job.attack.engine.choice:
        cell["engine"] = asdict(job.attack.engine.choice)


def recall_engine(job: Job, cell: dict[str, Any] | None) -> None:
    """Let a run go on in the way in which it was begun."""
    if job.attack.engine and cell and cell.get("engine"):
        job.attack.engine.recall(Choice(**cell["engine"]))


def go_on(manifest: dict[str, Any], command: str) -> None:
    """Note that this command computes what an earlier one of the run left; and the code, where it is another one."""
    manifest["command"] = command
    made_by = [manifest, *manifest.get("continued", [])][-1]
    code = {"commit": commit(), "versions": package_versions()}
    if {key: made_by[key] for key in code} != code:
        manifest.setdefault("continued", []).append({"at": now(), **code})


def add_up(cell: dict[str, Any], records: Sequence[Record]) -> None:
    """Enter the cost of a job, from its records; seconds of several processes add up."""
    own = [record for record in records if (record.scenario, record.attack) == (cell["scenario"], cell["attack"])]
    cell["seconds"] = sum(record.seconds for record in own)
    cell["gradient_evaluations"] = sum(record.gradient_evaluations for record in own)


def new_manifest(*, name: str, size: str, command: str, metrics: dict[str, str], success_psnr: float) -> dict[str, Any]:
    """The facts that hold for the whole run; cells are added as they finish."""
    return {
        "name": name,
        "size": size,
        "command": command,
        "versions": package_versions(),
        "commit": commit(),
        "platform": machine(),
        "metrics": metrics,
        "success_psnr": success_psnr,
        "started": now(),
        "finished": None,
        "cells": [],
    }
