"""Tracing and compiling change no number, fall back with a word, and are left where they do not repay."""

import logging
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim
from torch import Tensor

from gibench.attacks import GradientMatching, dlg, inverting_gradients
from gibench.clients import FedSGD
from gibench.engine import Choice, Engine, graph
from gibench.engine.graph import Traced, compile_where_it_repays
from gibench.errors import BackendError
from gibench.types import Observation, ThreatModel


def tree(tensors: dict[str, Any], more: Tensor | None) -> dict[str, Any]:
    inner = tensors["inner"]["z"]
    total = tensors["x"] if more is None else tensors["x"] + more
    return {"sum": total.sin() * inner, "none": None, "nested": {"double": 2 * inner, "same": inner}}


def arguments(seed: int = 0, size: int = 3) -> dict[str, Any]:
    source = torch.Generator().manual_seed(seed)
    return {"x": torch.rand(size, generator=source), "inner": {"z": torch.rand(size, generator=source)}}


def observe(*, batch_norm: bool = False) -> Observation:
    model = ThreatModel(victim="initial", batch_norm="private" if batch_norm else "absent")
    client = FedSGD(small_victim(batch_norm=batch_norm), threat_model=model).double()
    return client(batch_of(2, 2).to(torch.float64))


@pytest.mark.parametrize("more", [None, torch.tensor(0.3)])
def test_a_graph_is_its_function_for_other_values(more: Tensor | None) -> None:
    traced = Traced(tree, arguments(), more)
    for seed in (0, 1):
        found, expected = traced(arguments(seed), more), tree(arguments(seed), more)
        torch.testing.assert_close(found["sum"], expected["sum"])
        torch.testing.assert_close(found["nested"], expected["nested"])
        assert found["none"] is None
    assert traced.nodes > 0


@pytest.mark.parametrize(
    "other",
    [
        (arguments(),),
        ({"x": torch.ones(3)}, None),
        (arguments(size=4), None),
        (arguments(), torch.ones(())),
        ({"x": None, "inner": {"z": torch.ones(3)}}, None),
    ],
    ids=["one fewer", "another tree", "another shape", "a tensor for None", "None for a tensor"],
)
def test_a_graph_takes_what_it_was_traced_with(other: tuple[Any, ...]) -> None:
    with pytest.raises(BackendError, match="other arguments than it was traced with"):
        Traced(tree, arguments(), None)(*other)


@pytest.mark.parametrize("batch_norm", [False, True], ids=["", "batch norm"])
@pytest.mark.parametrize("backend", ["generic", "rules", "gram"])
@pytest.mark.parametrize("build", [dlg, inverting_gradients])
def test_a_traced_objective_is_the_objective(
    build: Callable[..., GradientMatching], backend: str, batch_norm: bool
) -> None:
    """Both differentiations, at another point, and of rows whose observed updates come as arguments."""
    attack, observation = build(steps=1, engine=Engine(backend=backend, compile="off")), observe(batch_norm=batch_norm)  # type: ignore[arg-type]
    objective, start = attack.problem(observation, [(0, 0), (0, 1)])
    flipped, _ = attack.problem(observation.select([1, 0]), [(0, 0), (0, 1)])
    traced = Traced(objective.evaluate, start, objective.all.known)
    elsewhere = {name: 0.9 * value.flip(0) + 0.01 for name, value in start.items()}
    for point, known in ((start, objective.all.known), (elsewhere, flipped.all.known)):
        (found, match), (expected, expected_match) = traced(point, known), objective.evaluate(point, known)
        torch.testing.assert_close(match, expected_match, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.value, expected.value, rtol=1e-9, atol=1e-12)
        for name, gradient in expected.gradient.items():
            torch.testing.assert_close(found.gradient[name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler, which torch.compile needs on a CPU")
def test_a_compiled_attack_is_the_attack() -> None:
    """Unsigned and in float64: a sign, or rounding, would drive the two apart."""
    found, observation = {}, observe().select([0])
    for mode in ("off", "on"):
        attack = inverting_gradients(steps=30, signed=False, engine=Engine(compile=mode))  # type: ignore[arg-type]
        found[mode] = attack(observation)
    assert (found["off"].backend, found["on"].backend) == ("generic", "generic, compiled")
    torch.testing.assert_close(found["on"].images, found["off"].images, rtol=0, atol=1e-9)
    torch.testing.assert_close(found["on"].objective, found["off"].objective, rtol=0, atol=1e-9)


def failing(*_: Any, **__: Any) -> Callable[..., Any]:
    def run(*_: Tensor) -> None:
        raise RuntimeError("no compiler here\nand a long story")

    return run


def test_a_failing_compiler_is_named_or_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", failing)
    with pytest.raises(BackendError, match=r"compiling failed \(no compiler here\); set the engine's compile to 'off'"):
        inverting_gradients(steps=2, engine=Engine(compile="on"))(observe())
    assert not caplog.records
    monkeypatch.setattr(graph, "WORTH_COMPILING", 0.0)
    monkeypatch.setattr(graph, "SECONDS_PER_NODE", 0.0)
    attack = inverting_gradients(steps=2)
    with caplog.at_level(logging.WARNING, "gibench"):
        assert attack(observe()).backend == "generic"
    assert attack.engine.choice is not None
    assert not attack.engine.choice.compiled
    assert attack.engine.choice.compile_reason.startswith("compiling failed (no compiler here)")
    assert "no compiler here" in caplog.text


def test_a_function_that_branches_on_values_is_not_traced(caplog: pytest.LogCaptureFixture) -> None:
    def branching(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    with caplog.at_level(logging.WARNING, "gibench"):
        traced, reason = compile_where_it_repays("auto", branching, (torch.ones(3),), seconds=1e9)
    assert traced is None
    assert reason.startswith("tracing failed")
    assert reason in caplog.text
    with pytest.raises(BackendError, match="tracing failed"):
        compile_where_it_repays("on", branching, (torch.ones(3),), seconds=0)


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_too_little_memory_is_no_fault_of_the_compiler(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Tensor) -> None:
        raise torch.OutOfMemoryError("too little")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: run)
    with pytest.raises(torch.OutOfMemoryError):
        compile_where_it_repays(mode, tree, (arguments(), None), seconds=1e9)


def test_compiling_must_repay(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the time to come, then by the size of the graph, then by the clock."""
    monkeypatch.setattr(torch, "compile", lambda traced, **_: traced)
    times = iter([2.0, 1.0, 1.0, 2.0])
    monkeypatch.setattr(graph, "fastest", lambda *_, **__: next(times))
    nodes = Traced(tree, arguments(), None).nodes
    monkeypatch.setattr(graph, "SECONDS_PER_NODE", 100 * graph.GAIN / nodes)  # 100 seconds repay

    def decide(mode: Any, seconds: float) -> tuple[bool, str]:
        traced, reason = compile_where_it_repays(mode, tree, (arguments(), None), seconds=seconds)
        return traced is not None, reason

    assert decide("off", 1e9) == (False, "off")
    assert decide("auto", 59) == (False, "too few evaluations to repay compiling")
    assert decide("auto", 99) == (False, f"too few evaluations to repay compiling {nodes} operations")
    assert decide("on", 0) == (True, f"{nodes} operations in one graph")
    assert decide("auto", 101) == (True, f"{nodes} operations in one graph")
    assert decide("auto", 101) == (False, f"{nodes} operations in one graph were only 0.50 times as fast")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_recalled_choice_decides_on_compiling(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda traced, **_: built.append(traced) or traced)
    attack = inverting_gradients(steps=2, engine=Engine())
    attack.engine.recall(Choice("generic", "before", compiled=compiled, compile_reason="as before"))
    for _ in range(2):
        assert attack(observe()).backend == ("generic, compiled" if compiled else "generic")
    assert len(built) == (2 if compiled else 0)  # each observation has a victim of its own
    again = observe()
    attack(again)
    attack(again)
    assert len(built) == (3 if compiled else 0)
