"""What a training cost: parts add up, counts do not depend on kills, and the record belongs to its weights alone."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from gibench.errors import WeightsError
from gibench.victims.offline import FILE, OfflineCost, metered, read_cost
from gibench.victims.restart import fit_from


class Regression(LightningModule):
    """Eight steps an epoch on forty rows; dies in the middle of epoch `dies`."""

    def __init__(self, dies: int | None = None) -> None:
        super().__init__()
        self.layer, self.dies = torch.nn.Linear(2, 1), dies

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> torch.Tensor:
        if self.current_epoch == self.dies and index == 4:
            raise RuntimeError("killed")
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def train(folder: Path, *, dies: int | None = None, content: bytes = b"weights", **options: Any) -> OfflineCost:
    rows = torch.arange(80.0).view(40, 2) / 80
    file = folder / "weights.bin"
    with metered(folder, [file], images=40, **options) as meter:
        fit_from(
            folder / "resume.ckpt",
            Regression(dies),
            DataLoader(TensorDataset(rows, rows[:, :1]), batch_size=5),
            epochs=3,
            callbacks=[meter],
            accelerator="cpu",
            precision="32-true",
        )
        file.write_bytes(content)
    (folder / "resume.ckpt").unlink()
    found = read_cost(file, hashlib.sha256(content).hexdigest())
    assert found is not None
    return found


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by ten seconds whenever it is asked, half of them computing."""
    time = [0.0]

    def tick() -> float:
        time[0] += 10
        return time[0]

    monkeypatch.setattr("gibench.victims.offline.monotonic", tick)
    monkeypatch.setattr("gibench.victims.offline.process_time", lambda: time[0] / 2)


@pytest.mark.usefixtures("_clock")
@pytest.mark.filterwarnings("ignore:.*workers.*", "ignore:.*logging interval.*", "ignore:.*LeafSpec.*")
def test_a_killed_training_costs_all_its_parts_and_counts_what_is_kept(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole")
    assert (whole.images, whole.steps, whole.examples, whole.devices) == (40, 24, 120, ["cpu"])
    assert whole.total == whole.seconds == 2 * whole.cpu_seconds == 40  # three epochs and the end
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path / "cut", dies=1)
    begun = OfflineCost.model_validate_json((tmp_path / "cut" / FILE).read_text())
    assert (begun.seconds, begun.weights) == (20, [])  # one epoch and the kill
    cut = train(tmp_path / "cut")
    assert (cut.steps, cut.examples, cut.weights) == (whole.steps, whole.examples, whole.weights)
    assert cut.seconds == 20 + 30
    again = train(tmp_path / "whole", content=b"others")
    assert again.seconds == 40  # done again, not continued
    assert read_cost(tmp_path / "whole" / "weights.bin", whole.weights[0]) is None
    later = train(tmp_path / "later", start=tmp_path / "cut" / "weights.bin")
    assert (later.seconds_before, later.total) == (50, 90)
    (tmp_path / "cut" / FILE).unlink()
    assert train(tmp_path / "last", start=tmp_path / "cut" / "weights.bin").total is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"images": 1, "seconds": -1.0}',
        b'{"images": 1, "seconds": NaN}',
        b'{"images": 1, "surprise": 1}',
        b'{"images": 1}' + b" " * 70_000,
        b'{"images": 1, "weights": ["../../etc"]}',
    ],
)
def test_a_record_that_no_training_writes_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(WeightsError, match=r"cost\.json is no record .* delete it"):
        read_cost(tmp_path / "weights.bin", "0" * 64)


def test_weights_from_elsewhere_have_no_record(tmp_path: Path) -> None:
    assert read_cost(tmp_path / "weights.bin", "0" * 64) is None
