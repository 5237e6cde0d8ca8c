"""What the benchmarks share: victims, updates to attack, a clock, and the machine's ceilings."""

import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gibench.attacks import GradientMatching, inverting_gradients
from gibench.clients import FedSGD
from gibench.clients.batch_norm import has_batch_norm
from gibench.engine import Engine
from gibench.progress import clock
from gibench.runs.manifest import peak_memory
from gibench.search import Adam
from gibench.types import Batch, Observation, ThreatModel
from gibench.victims import Victim, convnet64, lenet, mlp, resnet18, resnet20

VICTIMS: dict[str, Callable[[], Victim]] = {
    "lenet": lenet,
    "mlp": mlp,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "convnet64": convnet64,
}
TV = 1e-4
CPU = torch.device("cpu")


def observe(victim: Victim, updates: int, batch_size: int) -> Observation:
    """Updates of random images with random labels; speed does not depend on what they show."""
    source = torch.Generator().manual_seed(0)
    images = torch.rand(updates, batch_size, *victim.image_shape, generator=source)
    labels = torch.randint(victim.num_classes, (updates, batch_size), generator=source)
    batch = Batch(
        images=images,
        labels=labels,
        image_ids=tuple(tuple(f"{update}/{image}" for image in range(batch_size)) for update in range(updates)),
        update_ids=tuple(str(update) for update in range(updates)),
    )
    regime = "eval" if has_batch_norm(victim) else "absent"
    threat_model = ThreatModel.model_validate({"victim": "initial", "batch_norm": regime})
    device = victim.mean.device
    return FedSGD(victim, threat_model=threat_model).to(device)(batch.to(device))


class Ours:
    """Inverting Gradients on all updates together, as the suite runs it for 24,000 steps.

    Args:
        observation: the updates.
        engine: how.
        restarts: rows for each update.
    """

    def __init__(self, observation: Observation, engine: Engine, *, restarts: int = 1) -> None:
        self.attack: GradientMatching = inverting_gradients(steps=24_000, tv=TV, restarts=restarts, engine=engine)
        prepared = self.attack.prepare(observation)
        self.rows = observation.updates * restarts
        at_once = self.attack.rows_at_once(observation, prepared)
        rows = [(restart, update) for update in range(observation.updates) for restart in range(restarts)]
        self.parts = [
            self.attack.ready(observation, rows[first : first + at_once], prepared)
            for first in range(0, len(rows), at_once)
        ]
        self.choice, self.at_once = prepared.choice, min(at_once, len(rows))

    def run(self, steps: int) -> None:
        """So many iterations of every row."""
        search = Adam(steps=steps, signed=True)
        with torch.enable_grad():
            for objective, start in self.parts:
                search(objective, start)


def seconds(function: Callable[[], Any], device: torch.device = CPU) -> float:
    """How long a call takes, the device's work included."""
    begin = clock(device)
    function()
    return clock(device) - begin


def resident(device: torch.device) -> int:
    """Bytes that are held now: on the device, or by this process (the peak so far where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else peak_memory(device)


def ceilings(device: torch.device) -> dict[str, float]:
    """GFLOP/s of a convolution (64 to 64 channels, 3x3, 32 images of 32x32) and of a matrix product (2048 cubed)."""
    images = torch.rand(32, 64, 32, 32, device=device)
    weight = torch.rand(64, 64, 3, 3, device=device)
    square = torch.rand(2048, 2048, device=device)

    def best(function: Callable[[], Tensor], flops: float) -> float:
        function()
        return flops / min(seconds(function, device) for _ in range(5)) / 1e9

    return {
        "convolution": best(lambda: F.conv2d(images, weight, padding=1), 2 * 32 * 32 * 32 * 64 * 64 * 9),
        "matrix_product": best(lambda: square @ square, 2 * 2048**3),
    }


def write(path: Path | None, result: dict[str, Any]) -> None:
    """Write the result, with the machine and the command that made it."""
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": torch.get_num_threads(),
            "torch": torch.__version__,
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        **result,
    }
    if path:
        path.write_text(json.dumps(result, indent=2) + "\n")
