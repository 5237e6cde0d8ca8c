"""Small runs on disk, made from colored noise, for the tests of the report."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gibench.records import RunFolder
from gibench.types import Record, ThreatModel

MakeRecord = Callable[..., Record]


@pytest.fixture(scope="session")
def record() -> MakeRecord:
    """Make a record of update `u` with sensible values for what a test does not care about."""

    def make(attack: str = "ig", update: int = 0, position: int = 0, psnr: float = 16.0, **fields: Any) -> Record:
        values: dict[str, Any] = {
            "scenario": "lenet",
            "attack": attack,
            "image_id": f"image/{update:03d}-{position}",
            "update_id": f"u{update:03d}",
            "position": position,
            "status": "ok",
            "psnr": psnr,
            "ssim": 0.5,
            "mse": 10 ** (-psnr / 10),
            "lpips_alex": 0.25,
            "lpips_vgg": None,
            "objective": 0.1,
            "label": 3,
            "label_inferred": None,
            "seed": 7,
            "gradient_evaluations": 300.0,
            "seconds": 1.5,
        }
        return Record(**(values | fields))

    return make


@pytest.fixture
def write_run(tmp_path: Path, record: MakeRecord) -> Callable[..., Path]:
    """Write a run of `attacks` (name -> noise level) on `images` images, B = 1, and return its folder."""

    def write(
        attacks: dict[str, float], *, images: int = 12, scenario: str = "lenet", pictures: bool = True, **fields: Any
    ) -> Path:
        folder = RunFolder(tmp_path / "run")
        for name, level in attacks.items():
            for update in range(images):
                private, found = picture(update), noisy(update, level)
                psnr = min(-10 * math.log10((found - private).square().mean().item() + 1e-12), 100.0)
                folder.records.append([record(name, update, 0, psnr, **({"scenario": scenario} | fields))])
                if pictures:
                    tensors = {"images": found[None], "private": private[None]}
                    folder.save_tensors(tensors, "reconstructions", scenario, name, f"u{update:03d}")
        return folder.path

    return write


def picture(seed: int) -> Tensor:
    """A smooth private image (3, 16, 16)."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")[0].clamp(0, 1)


def noisy(seed: int, level: float) -> Tensor:
    """The image with noise of standard deviation `level`: a reconstruction."""
    noise = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1000 + seed))
    return (picture(seed) + level * noise).clamp(0, 1)


@pytest.fixture
def manifest() -> dict[str, Any]:
    """A finished manifest with one cell."""
    threat_model = ThreatModel(victim="initial", batch_norm="absent")
    cell = {
        "scenario": "lenet",
        "attack": "ig",
        "configuration": {"attack": {"class_path": "gibench.attacks.inverting_gradients"}},
        "threat_model": threat_model.model_dump(),
        "victim": {"architecture": "lenet", "parameters": 15826, "test_accuracy": None},
        "data": {"name": "cifar10", "splits": {"score": "5f2c"}},
        "device": "cpu",
        "precision": "32-true",
        "seconds": 18.0,
        "gradient_evaluations": 3600.0,
        "peak_memory_bytes": 300 * 2**20,
    }
    return {
        "name": "first",
        "size": "small",
        "command": "gibench run first.yaml --size small",
        "versions": {"torch": "2.15.0"},
        "commit": "0123abc",
        "platform": {"system": "Linux", "threads": 2},
        "metrics": {"psnr": "available", "lpips_vgg": "no VGG weights; set GIBENCH_WEIGHTS."},
        "success_psnr": 20.0,
        "started": "2026-11-20T14:00:00+00:00",
        "finished": "2026-11-20T14:27:00+00:00",
        "cells": [cell],
    }
