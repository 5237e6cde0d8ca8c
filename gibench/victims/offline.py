"""What the training of an attack cost, before any update was seen (rule R10): kept in `cost.json` beside the weights.

The weights themselves do not hold it, because they are the same, byte for byte, however long their training took.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, process_time
from typing import Annotated, Any

import torch
from lightning.pytorch import Callback, Trainer
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gibench.errors import StorageError, WeightsError
from gibench.storage import write_atomically

FILE = "cost.json"
LONGEST = 1 << 16  # bytes
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]


class OfflineCost(BaseModel):
    """What a training cost; `seconds` depend on the machine, the counts do not.

    seconds: wall clock of all parts of a training that was killed and continued, the making of pairs included; of what
        a part did after its last whole epoch nothing counts if it was killed without notice. cpu_seconds: the same, of
        all threads of the process; None if unknown. seconds_before: of the training whose weights this one started
        from; None if unknown.
    images: different auxiliary images. steps: of optimizers. examples: what was trained on in all, with repetition:
        updates for an inverter, images for a generator.
    devices: where it ran. weights: SHA-256 of the files that came of it; none until it is finished.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    seconds: Amount = 0.0
    cpu_seconds: Amount | None = 0.0
    seconds_before: Amount | None = 0.0
    images: Count
    steps: Count = 0
    examples: Count = 0
    devices: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=8)] = []
    weights: Annotated[list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]], Field(max_length=64)] = []

    @property
    def total(self) -> float | None:
        """Seconds with those of the training before; None where they are unknown."""
        return None if self.seconds_before is None else self.seconds + self.seconds_before


class Meter(Callback):
    """Adds up the cost of a training; made by `metered`."""

    def __init__(self, folder: Path, cost: OfflineCost) -> None:
        self.file, self.cost = folder / FILE, cost
        self._before = cost.seconds, cost.cpu_seconds
        self._began = monotonic(), process_time()

    def state_dict(self) -> dict[str, Any]:
        """The counts at the end of an epoch: a training goes on from there."""
        return {"steps": self.cost.steps, "examples": self.cost.examples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the counts of the state from which a killed training continues."""
        self.cost.steps, self.cost.examples = int(state_dict["steps"]), int(state_dict["examples"])

    def on_train_start(self, trainer: Trainer, *_: object) -> None:
        """Note the device."""
        cuda = trainer.strategy.root_device.type == "cuda"
        name = torch.cuda.get_device_name() if cuda else str(trainer.strategy.root_device)
        if name not in self.cost.devices:
            self.cost.devices = [*self.cost.devices, name][-8:]

    def on_train_batch_end(self, trainer: Trainer, module: object, outputs: object, batch: Any, *_: object) -> None:  # noqa: ANN401 - of any training
        """Count the step, and the rows of its batch, or of the first tensor of its batch."""
        self.cost.steps = trainer.global_step
        self.cost.examples += len(batch[0] if isinstance(batch, list | tuple) else batch)

    def on_train_epoch_end(self, *_: object) -> None:
        """Write what it has cost so far."""
        self.note()

    def note(self, files: Sequence[Path] = ()) -> None:
        """Write what it has cost so far, and once it is finished what it came to.

        Raises:
            StorageError: the file cannot be written.
        """
        self.cost.seconds = self._before[0] + monotonic() - self._began[0]
        before = self._before[1]
        self.cost.cpu_seconds = None if before is None else before + process_time() - self._began[1]
        self.cost.weights = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        write_atomically(self.cost.model_dump_json(indent=2).encode(), self.file)


@contextmanager
def metered(folder: Path, files: Sequence[Path], *, images: int, start: Path | None = None) -> Iterator[Meter]:
    """Measure the training inside the `with`; hand what it yields to `fit_from` as one of the callbacks.

    Several parts of a training that was killed add up; a training that is done again begins at zero.

    Args:
        folder: of the training, gets `cost.json`.
        files: the weights, which are there when the block ends.
        images: how many different images are trained on.
        start: the file of weights that the training starts from; what that cost is part of the cost.

    Raises:
        StorageError: `cost.json` cannot be written.
        WeightsError: there is one that is damaged.
    """
    found = _read(folder / FILE)
    cost = found if found is not None and not found.weights else OfflineCost(images=images)
    if start is not None:
        before = read_cost(start, hashlib.sha256(start.read_bytes()).hexdigest())
        cost.seconds_before = None if before is None else before.total
    meter = Meter(folder, cost)
    try:
        yield meter
    except BaseException:
        with suppress(StorageError):  # the error at hand says more
            meter.note()
        raise
    meter.note(files)


def read_cost(weights: Path, sha256: str) -> OfflineCost | None:
    """Return what it cost to train a file of weights, or None where that is not recorded.

    Raises:
        WeightsError: the record beside it is damaged.
    """
    cost = _read(weights.parent / FILE)
    return cost if cost is not None and sha256 in cost.weights else None


def _read(file: Path) -> OfflineCost | None:
    try:
        if not file.is_file():
            return None
        content = file.read_bytes() if file.stat().st_size <= LONGEST else b""
        return OfflineCost.model_validate_json(content)
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(f"{file} is no record of what a training cost ({reason}); delete it.") from error
