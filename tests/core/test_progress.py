"""Watchers come and go in any order, and what they take is not the attack's."""

import time

import pytest
import torch
from helpers import batch_of, small_victim
from torch import Tensor

from gibench import GradientInversion
from gibench.attacks import Attack
from gibench.clients import FedSGD
from gibench.metrics import ImageQuality
from gibench.progress import Step, report, stopwatch, watching
from gibench.types import Observation, Reconstruction

STEPS, WAIT = 4, 0.25


def step(done: int = 1) -> Step:
    return Step(done, STEPS, torch.zeros(1), lambda: torch.zeros(1, 1, 3, 8, 8))


def slow(_: Step) -> None:
    time.sleep(WAIT)


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


def test_a_stopwatch_stands_still_while_others_watch() -> None:
    with watching(slow), stopwatch(torch.device("cpu")) as watch:
        start = time.perf_counter()
        for done in range(STEPS):
            report(step(done))
        seconds, whole = watch.seconds(), time.perf_counter() - start
    assert whole - seconds > 0.99 * STEPS * WAIT
    assert seconds >= 0


def test_a_watcher_that_fails_has_taken_its_time_all_the_same() -> None:
    def fail(_: Step) -> None:
        time.sleep(WAIT)
        raise ValueError

    with watching(fail), stopwatch(torch.device("cpu")) as watch:
        start = time.perf_counter()
        with pytest.raises(ValueError, match=""):
            report(step())
        assert time.perf_counter() - start - watch.seconds() > 0.99 * WAIT


class Reporting(Attack):
    """Takes `own` seconds, and reports."""

    def __init__(self, own: float) -> None:
        super().__init__()
        self.own = own

    def forward(self, observation: Observation) -> Reconstruction:
        self.start = time.perf_counter()
        time.sleep(self.own)
        for done in range(STEPS):
            report(step(done))
        self.whole = time.perf_counter() - self.start
        return Reconstruction(
            images=torch.zeros(1, 1, 3, 8, 8),
            labels=None,
            objective=torch.zeros(1),
            gradient_evaluations=torch.zeros(1, dtype=torch.int64),
        )


def test_scoring_iterates_is_not_charged_to_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    attack = Reporting(own=WAIT)
    task = GradientInversion(FedSGD(small_victim()), attack, quality=ImageQuality(lpips=()))
    charged: list[float] = []
    scorer = task.scorer

    def score(name: str, found: Reconstruction, batch: object, *, seconds: float) -> Tensor:
        charged.append(seconds)
        return found.images

    monkeypatch.setattr(task, "scorer", score)
    with watching(slow):
        task.predict_step(batch_of(1, 1))
    assert scorer is not None
    assert attack.whole > (STEPS + 1) * WAIT * 0.99
    assert charged[0] >= WAIT * 0.99
    assert (
        charged[0] < attack.whole - 0.98 * STEPS * WAIT + WAIT
    )  # without the watchers, and what else predict_step does
