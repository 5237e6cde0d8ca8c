"""A step that is replayed: the protocol of the capture, and what is done without."""

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim

from gibench.attacks import inverting_gradients
from gibench.clients import FedSGD
from gibench.engine import Engine, replay
from gibench.engine.replay import WARM_UP, Replay
from gibench.search import Adam


def test_on_a_cpu_a_replay_is_the_step() -> None:
    calls: list[int] = []
    step = Replay(lambda: calls.append(1), torch.device("cpu"))
    for _ in range(WARM_UP + 3):
        step()
    assert len(calls) == WARM_UP + 3
    assert step.graph is None


class Recorder:
    """Stands in for torch.cuda and writes down what is asked of it."""

    def __init__(self, *, capturable: bool = True) -> None:
        self.events: list[str] = []
        self.capturable = capturable

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "Recorder":
        for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph", "synchronize", "device"):
            monkeypatch.setattr(replay.torch.cuda, name, getattr(self, name))
        return self

    class Waiting:
        """A stream."""

        def __init__(self, events: list[str], name: str) -> None:
            self.events, self.name = events, name

        def wait_stream(self, other: "Recorder.Waiting") -> None:
            self.events.append(f"{self.name} waits for {other.name}")

    class Within:
        """A context that is written down."""

        def __init__(self, recorder: "Recorder", name: str) -> None:
            self.recorder, self.name = recorder, name

        def __enter__(self) -> None:
            self.recorder.events.append(f"enter {self.name}")

        def __exit__(self, *_: Any) -> None:
            self.recorder.events.append(f"leave {self.name}")
            if self.name == "capture" and not self.recorder.capturable:
                raise RuntimeError("operation not permitted\nwhen capturing")

    def Stream(self) -> Waiting:  # noqa: N802 - the name in torch
        return self.Waiting(self.events, "side")

    def current_stream(self) -> Waiting:
        return self.Waiting(self.events, "main")

    def stream(self, stream: Waiting) -> Within:
        return self.Within(self, stream.name)

    def CUDAGraph(self) -> "Recorder":  # noqa: N802 - the name in torch
        return self

    def replay(self) -> None:
        self.events.append("replay")

    def graph(self, _graph: "Recorder") -> Within:
        return self.Within(self, "capture")

    def device(self, _device: torch.device) -> AbstractContextManager[None]:
        return nullcontext()

    def synchronize(self) -> None:
        self.events.append("synchronize")


WARM = ["side waits for main", "enter side", "step", "leave side", "main waits for side"]


def test_a_step_is_warmed_up_captured_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Recorder().install(monkeypatch)
    step = Replay(lambda: fake.events.append("step"), torch.device("cuda"))
    for _ in range(WARM_UP + 3):
        step()
    # Within the capture the step is only recorded, so that each call moves once: by a step or by a replay.
    captured = ["enter capture", "step", "leave capture", "replay"]
    assert fake.events == WARM_UP * WARM + captured + ["replay", "replay"]


def test_what_cannot_be_captured_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Recorder(capturable=False).install(monkeypatch)
    step = Replay(lambda: fake.events.append("step"), torch.device("cuda"))
    with caplog.at_level(logging.WARNING, "gibench"):
        for _ in range(WARM_UP + 3):
            step()
    attempt = ["enter capture", "step", "leave capture", "synchronize", "step"]
    assert fake.events == WARM_UP * WARM + attempt + ["step", "step"]
    assert [record.getMessage() for record in caplog.records] == [
        "the step cannot be captured (operation not permitted); every kernel is launched by itself."
    ]


def test_capture_is_left_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Recorder().install(monkeypatch)
    step = Replay(lambda: fake.events.append("step"), torch.device("cuda"), capture=False)
    for _ in range(WARM_UP + 2):
        step()
    assert fake.events == (WARM_UP + 2) * ["step"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("stops", [{}, {"patience": 20}])
def test_captured_steps_are_the_steps(stops: dict[str, int]) -> None:
    client, batch = (
        FedSGD(small_victim()).double().to("cuda"),
        batch_of(4, 1).to(torch.float64).to(torch.device("cuda")),
    )
    observation, found = client(batch), []
    for mode in ("off", "auto"):
        attack = inverting_gradients(steps=1, engine=Engine(compile=mode))  # type: ignore[arg-type]
        attack.search = Adam(steps=120, signed=False, **stops)  # type: ignore[arg-type]
        found.append(attack(observation))
    torch.testing.assert_close(found[0].images, found[1].images, rtol=0, atol=1e-9)
    assert torch.equal(found[0].gradient_evaluations, found[1].gradient_evaluations)
