"""The manifest of a run: what was run, on what, with which versions, and at what cost (rules R3, R10, R13)."""

import hashlib
import json
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gibench.diagnostics import package_versions


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
    """Peak bytes since the process began, on the accelerator where there is one, else resident in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def digest(tree: Any) -> str:  # noqa: ANN401 - any JSON value
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


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
