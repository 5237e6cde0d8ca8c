"""The harness scores the iterates of the first group: right numbers, no difference to the attack, kills included."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim
from lightning import Trainer
from torch import Tensor, nn

from gibench import GradientInversion
from gibench.attacks import Attack, BiasAttack, UndoTransformation, WrongUpdate, inverting_gradients
from gibench.clients import FedSGD
from gibench.metrics import ImageQuality
from gibench.progress import Step, report
from gibench.records import RunFolder
from gibench.report.traces import read_trace, trace_path
from gibench.runs.callbacks import Animation
from gibench.runs.traces import POINTS, Tracer, answers_its_search, due, restarts
from gibench.types import Batch, Observation, Reconstruction, ThreatModel

Command = Callable[..., tuple[int, str, str]]


class Scripted(Attack):
    """Reports given iterates, one step each, and answers the last; it has seen the truth beforehand."""

    def __init__(self, steps: Sequence[tuple[Tensor, Tensor]], *, restarts: int = 1) -> None:
        super().__init__()
        self.steps = steps
        self.restarts = restarts

    def forward(self, observation: Observation) -> Reconstruction:
        for number, (objective, images) in enumerate(self.steps, start=1):
            report(Step(number, len(self.steps), objective, lambda images=images: images))  # type: ignore[misc]
        report(Step(1, 1, objective, lambda: torch.zeros_like(images)))  # a second search is nobody's business
        rows = observation.updates
        return Reconstruction(
            images=self.steps[-1][1][:rows],
            labels=None,
            objective=torch.zeros(rows),
            gradient_evaluations=torch.zeros(rows, dtype=torch.int64),
        )


def watch(folder: Path, attack: Attack, *groups: Batch, first_update: str = "update-0") -> None:
    client = FedSGD(small_victim())
    task = GradientInversion(client, attack, quality=ImageQuality(lpips=()), fallback=torch.full((3, 8, 8), 0.25))
    names = (RunFolder(folder), "s", "a")
    trainer = Trainer(
        inference_mode=False, logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Animation(*names, first_update=first_update), Tracer(*names, first_update=first_update)],
    )  # fmt: skip
    trainer.predict(task, torch.utils.data.DataLoader(groups, batch_size=None))


def decibels(first: Tensor, second: Tensor) -> float:
    return float((-10 * (first - second).double().square().mean((-3, -2, -1)).log10()).mean())


def test_iterates_are_matched_mended_and_chosen_by_the_objective(tmp_path: Path) -> None:
    batch = batch_of(2, 2)
    near = (batch.images + 0.1 * torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )
    far = torch.full_like(near, 0.5)
    swapped = near.flip(1)
    broken = near.clone()
    broken[0, 1] = torch.nan

    def rows(first: Tensor, second: Tensor) -> Tensor:
        """Two restarts of each update, update by update."""
        return torch.stack([first, second], 1).flatten(0, 1)

    low_first, low_second = torch.tensor([1.0, 2.0, 1.0, 2.0]), torch.tensor([torch.nan, 2.0, 3.0, 2.0])
    script = [
        (low_first, rows(near, far)),
        (low_second, rows(near, far)),
        (low_first, rows(swapped, far)),
        (low_first, rows(broken, far)),
        (low_first, rows(near, far)),
    ]
    watch(tmp_path, Scripted(script, restarts=2), batch)
    points = read_trace(trace_path(tmp_path, "s", "a"))
    assert [(point.step, point.answer) for point in points] == [(n, False) for n in range(1, 6)] + [(5, True)]
    assert {point.images for point in points} == {4}
    mended = near.clone()
    mended[0, 1] = 0.25
    expected = [decibels(images, batch.images) for images in (near, far, near, mended, near)]
    assert [point.psnr for point in points[:-1]] == pytest.approx(expected, rel=1e-5)
    assert [point.objective for point in points] == [1, 2, 1, 1, 1, None]


def test_only_the_first_group_is_traced_and_filmed(tmp_path: Path) -> None:
    first, second = batch_of(2, 1), batch_of(2, 1, seed=1)
    second = second.model_copy(update={"update_ids": ("update-2", "update-3")})
    attack = Scripted([(torch.zeros(2), first.images), (torch.zeros(2), second.images)])
    watch(tmp_path, attack, second, first)
    points = read_trace(trace_path(tmp_path, "s", "a"))
    assert points[0].psnr == 100
    assert len(points) == 3
    assert torch.equal(RunFolder(tmp_path).load_tensors("animation", "s", "a")["private"], first.images[0, 0])
    watch(tmp_path / "resumed", attack, second)
    assert not (tmp_path / "resumed").exists() or not list((tmp_path / "resumed").rglob("*.csv"))


class Undoing(UndoTransformation):
    """Answers something else than what it searches."""

    def check(self, threat_model: ThreatModel, name: str | None = None) -> None:
        """Serve clients without a defense, too."""

    def forward(self, observation: Observation) -> Reconstruction:
        report(Step(1, 1, torch.zeros(2), lambda: torch.zeros(2, 1, 3, 8, 8)))
        return Scripted([(torch.zeros(2), torch.ones(2, 1, 3, 8, 8))])(observation)


def test_what_answers_something_else_than_it_searches_is_not_traced(tmp_path: Path) -> None:
    undoing = Undoing(attack=inverting_gradients())
    assert not answers_its_search(WrongUpdate(undoing))
    assert answers_its_search(WrongUpdate(inverting_gradients()))
    watch(tmp_path, undoing, batch_of(2, 1))
    assert read_trace(trace_path(tmp_path, "s", "a")) == []


def test_the_film_follows_the_slot_that_ends_as_the_image(tmp_path: Path) -> None:
    batch = batch_of(1, 2)
    gray = torch.full_like(batch.images, 0.5)
    gray[:, 1] = 0.25
    watch(tmp_path, Scripted([(torch.zeros(1), gray), (torch.zeros(1), batch.images.flip(1))]), batch)
    film = RunFolder(tmp_path).load_tensors("animation", "s", "a")
    assert torch.equal(film["frames"][-1], batch.images[0, 0])
    assert torch.equal(film["frames"][0], gray[0, 1])


@pytest.mark.parametrize("rows", [3, 6])
def test_rows_that_are_no_whole_updates_are_not_traced(tmp_path: Path, rows: int) -> None:
    batch = batch_of(2, 1)
    images = torch.full((rows, 1, 3, 8, 8), 0.5)
    watch(tmp_path, Scripted([(torch.zeros(rows), images)], restarts=2), batch)
    assert read_trace(trace_path(tmp_path, "s", "a")) == []


@pytest.mark.parametrize("total", [1, 2, 7, 300, 24000])
def test_steps_are_evenly_spaced_by_their_logarithm(total: int) -> None:
    steps = sorted(due(total))
    assert steps[0] == 1
    assert steps[-1] == total
    assert len(steps) <= POINTS
    ratio = total ** (1 / (POINTS - 1))
    assert all(later <= math.ceil(earlier * ratio + 1) for earlier, later in pairwise(steps))


def test_restarts_are_those_of_the_attack_inside() -> None:
    assert restarts(inverting_gradients(restarts=3)) == 3
    assert restarts(WrongUpdate(inverting_gradients(restarts=3))) == 3
    assert restarts(BiasAttack()) == 1
    assert restarts(nn.Identity()) == 1


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "traces").rglob("*.csv")}


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_trace_that_ends_in_what_it_recorded(gibench: Command, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert gibench("run", single, "--out", out, "--limit", 2)[0] == 0
    (path,) = [path for path in (out / "traces").rglob("*.csv") if "floor" not in path.name]
    with path.open() as file:
        *iterates, answer = list(csv.DictReader(file))
    assert (answer["answer"], answer["images"], int(answer["step"])) == ("yes", "2", 12)
    first = [row for row in records(out) if row["attack"] == "inverting_gradients"]
    assert float(answer["psnr"]) == pytest.approx(sum(row["psnr"] for row in first) / 2, rel=1e-5)
    assert [int(line["step"]) for line in iterates] == sorted(due(12))
    assert {row["identified"] for row in first} <= {True, False}
    assert all(row["psnr_class_mean"] > 5 for row in first)
    page = (out / "report.html").read_text()
    assert "PSNR by step" in page
    assert "What the errors look like" in page


@pytest.mark.parametrize("kill", ["RecordWriter", "Tracer"])
def test_a_run_killed_in_its_first_group_has_the_trace_of_an_unbroken_one(
    gibench: Command, single: Path, tmp_path: Path, kill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the trace is written, or between it and the records; then the same command, twice."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert gibench("run", single, "--out", whole, "--limit", 2)[0] == 0
    target = {"RecordWriter": "gibench.runs.callbacks.RecordWriter", "Tracer": "gibench.runs.traces.Tracer"}[kill]

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"{target}.on_predict_batch_end", die)
        assert gibench("run", single, "--out", killed, "--limit", 2)[0] != 0
    assert bool(read(killed)) == (kill == "RecordWriter")
    for _ in range(2):
        assert gibench("run", single, "--out", killed, "--limit", 2)[0] == 0
        assert read(killed) == read(whole)


def test_a_longer_run_keeps_the_trace_of_the_first_group(gibench: Command, single: Path, tmp_path: Path) -> None:
    """Groups of two: the first group is done after --limit 2, and stays."""
    out = tmp_path / "run"
    assert gibench("run", single, "--out", out, "--limit", 2)[0] == 0
    before = read(out)
    film = {path: path.read_bytes() for path in (out / "animation").rglob("*.safetensors")}
    assert gibench("run", single, "--out", out, "--limit", 4)[0] == 0
    assert read(out) == before
    assert {path: path.read_bytes() for path in (out / "animation").rglob("*.safetensors")} == film
