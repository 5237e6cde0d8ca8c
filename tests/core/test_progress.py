"""Watchers come and go in any order, and what they take is not the attack's."""

from types import SimpleNamespace

import pytest
import torch
from helpers import batch_of, small_victim

from gibench import GradientInversion
from gibench.attacks import Attack
from gibench.clients import FedSGD
from gibench.metrics import ImageQuality
from gibench.progress import Step, report, stopwatch, watching
from gibench.types import Observation, Reconstruction

STEPS = 4


def step(done: int = 1) -> Step:
    return Step(done, STEPS, torch.zeros(1), lambda: torch.zeros(1, 1, 3, 8, 8))


class Clock:
    """Time that passes only where somebody says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("gibench.progress.time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


@pytest.mark.parametrize("first_out", [0, 1])
def test_a_watcher_that_leaves_is_gone_whatever_the_order(first_out: int) -> None:
    seen: list[list[Step]] = [[], []]
    blocks = [watching(calls.append) for calls in seen]
    for block in blocks:
        block.__enter__()
    report(step())
    blocks[first_out].__exit__(None, None, None)
    report(step())
    blocks[1 - first_out].__exit__(None, None, None)
    report(step())
    assert [len(calls) for calls in seen] == ([1, 2] if first_out == 0 else [2, 1])


def test_a_watcher_that_is_installed_twice_leaves_once_each() -> None:
    seen: list[Step] = []
    with watching(seen.append):
        with watching(seen.append):
            report(step())
        report(step())
    assert len(seen) == 3


@pytest.fixture
def stream(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose stream is done at once, in place of a GPU; what this cannot show is that events measure."""

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            assert stream == "stream"
            self.at = clock.now

        def query(self) -> bool:
            return True

        def elapsed_time(self, other: "Event") -> float:
            return 1000 * (other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "stream")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.usefixtures("stream")
def test_a_stopwatch_stands_still_while_others_watch(clock: Clock, device: str) -> None:
    with watching(lambda _: clock.pass_by(5.0)), stopwatch(torch.device(device)) as watch:
        for done in range(STEPS):
            clock.pass_by(1.0)
            report(step(done))
        assert watch.seconds() == STEPS
    with watching(lambda _: clock.pass_by(5.0)):
        report(step())  # nobody takes the time
    assert watch.seconds() == STEPS + 5


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.usefixtures("stream")
def test_a_watcher_that_fails_has_taken_its_time_all_the_same(clock: Clock, device: str) -> None:
    def fail(_: Step) -> None:
        clock.pass_by(5.0)
        raise RuntimeError("no more")

    with watching(fail), stopwatch(torch.device(device)) as watch:
        clock.pass_by(1.0)
        with pytest.raises(RuntimeError, match="no more"):
            report(step())
        assert watch.seconds() == 1


class Reporting(Attack):
    """Takes 3 seconds a step, and reports."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, observation: Observation) -> Reconstruction:
        for done in range(STEPS):
            self.clock.pass_by(3.0)
            report(step(done))
        rows = observation.updates
        return Reconstruction(
            images=torch.zeros(rows, 2, 3, 8, 8),
            labels=None,
            objective=torch.zeros(rows),
            gradient_evaluations=torch.zeros(rows, dtype=torch.int64),
        )


def test_scoring_iterates_is_not_charged_to_the_attack(clock: Clock) -> None:
    task = GradientInversion(FedSGD(small_victim()), Reporting(clock), quality=ImageQuality(lpips=()))
    with watching(lambda _: clock.pass_by(50.0)):
        scored = task.predict_step(batch_of(2, 2))
    assert [record.seconds for record in scored.records] == [3 * STEPS / 4] * 4
