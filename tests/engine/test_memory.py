"""What is searched together keeps to the budget, and running out of memory all the same costs time, not the result."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim
from torch import Tensor

from gibench.attacks import GradientMatching, inverting_gradients
from gibench.clients import FedSGD
from gibench.engine import Engine, choice, memory
from gibench.engine import engine as module
from gibench.engine.memory import free_bytes
from gibench.errors import ConfigurationError
from gibench.search import Objective
from gibench.types import Observation

GIB = 2**30
CPU = torch.device("cpu")
STEPS = 5
ERRORS = {
    "accelerator": torch.OutOfMemoryError("CUDA out of memory."),
    "CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
}


def observe(updates: int = 8) -> Observation:
    return FedSGD(small_victim()).double()(batch_of(updates, 1).to(torch.float64))


def build(*, restarts: int = 1, **settings: Any) -> GradientMatching:
    return inverting_gradients(steps=STEPS, signed=False, restarts=restarts, engine=Engine(**settings))


@pytest.mark.parametrize("backend", ["auto", "generic", "rules", "gram"])
def test_a_budget_for_not_even_one_update_is_refused(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is searched."""
    attack, observation = build(backend=backend, memory_gib=1e-6), observe(2)
    monkeypatch.setattr(Objective, "__call__", lambda *_: pytest.fail("computed"))
    with pytest.raises(ConfigurationError, match=r"one update needs about .* GiB, memory_gib allows .*; raise it"):
        attack(observation)


def test_a_trial_keeps_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows fit, or one with the search's own state; the trial of each back end evaluates no more."""
    monkeypatch.setattr(choice, "WORTH_MEASURING", 0.0)
    observation, sizes = observe(), rows_seen(monkeypatch)
    for budget, rows in ((3.5, 3), (1.3, 1)):
        sizes.clear()
        attack = build(memory_gib=budget * observation.bytes_per_update / GIB)
        attack.prepare(observation)
        assert set(sizes) == {rows}


def rows_seen(monkeypatch: pytest.MonkeyPatch, fail: Callable[[int], None] = lambda _: None) -> list[int]:
    """How many rows each evaluation has, from now on; `fail` may raise for a number."""
    sizes: list[int] = []
    real = Objective.evaluate

    def evaluate(objective: Objective, variables: dict[str, Tensor], *rest: Any) -> Any:
        rows = len(variables["pixels"])
        sizes.append(rows)
        fail(rows)
        return real(objective, variables, *rest)

    monkeypatch.setattr(Objective, "evaluate", evaluate)
    return sizes


@pytest.mark.parametrize(
    ("restarts", "fitting", "rows"),
    [(6, 1, 1), (6, 2, 2), (6, 4, 3), (6, 5, 3), (6, 6, 6), (6, 11, 6), (6, 13, 12), (1, 5, 5), (5, 4, 1)],
)
def test_whole_updates_or_divisors_of_the_restarts_go_together(restarts: int, fitting: int, rows: int) -> None:
    """By the budget, and by what once ran out of memory."""
    observation = observe(2)
    attack = build(restarts=restarts, memory_gib=fitting + 0.5)
    prepared = attack.prepare(observation)._replace(row_bytes=GIB)
    assert attack.rows_at_once(observation, prepared) == rows
    attack = build(restarts=restarts, memory_gib=100.0)
    prepared = attack.prepare(observation)._replace(row_bytes=0.01 * GIB)
    prepared.choice.row_limit = fitting
    assert attack.rows_at_once(observation, prepared) == rows


def test_without_a_budget_four_fifths_of_what_is_free_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda _: 10.0 * GIB)
    attack, observation = build(memory_gib=None), observe(2)
    assert attack.engine.budget(CPU) == 8 * GIB
    assert attack.rows_at_once(observation, attack.prepare(observation)._replace(row_bytes=GIB)) == 8
    monkeypatch.setattr(module, "free_bytes", lambda _: 1.25)
    attack = build(memory_gib=None)
    with pytest.raises(ConfigurationError, match=r"memory_gib allows 9\.3e-10"):
        attack(observation)


def test_free_memory_is_what_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < free_bytes(CPU) <= total
    report = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO", report)
    assert free_bytes(CPU) == total / 2
    report.write_text("MemTotal:  4096 kB\nMemFree:  1 kB\nMemAvailable:  2048 kB\n")
    assert free_bytes(CPU) == 2048 * 1024


@pytest.mark.parametrize("backend", ["generic", "rules", "gram"])
@pytest.mark.parametrize("kind", ERRORS)
def test_half_of_the_rows_go_on_where_memory_runs_out(
    kind: str, backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    observation = observe()
    whole = build(backend=backend)(observation)

    def fail(rows: int) -> None:
        if rows > 3:
            raise ERRORS[kind]

    sizes = rows_seen(monkeypatch, fail)
    attack = build(backend=backend)
    with caplog.at_level(logging.WARNING, "gibench"):
        found = attack(observation)
        attack(observation)  # which starts with what is known
    assert sizes == [8, 4] + 2 * 4 * STEPS * [2]
    assert [record.getMessage() for record in caplog.records] == [
        "8 rows together ran out of memory; going on with 4.",
        "4 rows together ran out of memory; going on with 2.",
    ]
    assert attack.engine.choice is not None
    assert attack.engine.choice.row_limit == 2
    torch.testing.assert_close(found.images, whole.images, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.objective, whole.objective, rtol=0, atol=1e-12)
    assert torch.equal(found.gradient_evaluations, whole.gradient_evaluations)


def test_what_was_found_before_memory_ran_out_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restarts of one update in two chunks, of which the second is cut once more."""
    observation = observe(1)
    whole = build(restarts=8)(observation)
    sizes: list[int] = []

    def fail(_rows: int) -> None:
        if len(sizes) == STEPS + 2:
            raise ERRORS["CPU"]

    sizes = rows_seen(monkeypatch, fail)
    attack = build(restarts=8)
    attack.prepare(observation).choice.row_limit = 4
    found = attack(observation)
    assert sizes == STEPS * [4] + 2 * [4] + 2 * STEPS * [2]
    assert found.candidates is not None
    torch.testing.assert_close(found.candidates, whole.candidates, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.images, whole.images, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ERRORS)
def test_a_single_row_without_memory_is_an_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_rows: int) -> None:
        raise ERRORS[kind]

    observation, sizes = observe(), rows_seen(monkeypatch, fail)
    with pytest.raises(RuntimeError, match=r"out of memory|DefaultCPUAllocator"):
        build()(observation)
    assert sizes == [8, 4, 2, 1]


def test_another_error_is_not_taken_for_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_rows: int) -> None:
        raise RuntimeError("sizes do not match")

    observation, sizes = observe(), rows_seen(monkeypatch, fail)
    with pytest.raises(RuntimeError, match="sizes do not match"):
        build()(observation)
    assert sizes == [8]
    assert not caplog.records


SCRIPT = """
import resource, sys
import torch
from gibench.attacks import inverting_gradients
from gibench.clients import FedSGD
from gibench.engine import Engine
from gibench.types import Batch, ThreatModel
from gibench.victims import resnet18

torch.manual_seed(0)
batch = Batch(images=torch.rand(1, 1, 3, 32, 32), labels=torch.zeros(1, 1, dtype=torch.int64),
              image_ids=(("0",),), update_ids=("0",))
known = ThreatModel(victim="initial", batch_norm="eval")
observation = FedSGD(resnet18(), threat_model=known)(batch)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attack = inverting_gradients(steps=1, restarts=64, engine=Engine(backend=sys.argv[1], memory_gib=4.0))
assert attack(observation).images.isfinite().all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("backend", ["generic", "rules", "gram"])
def test_resident_memory_keeps_to_the_budget(backend: str) -> None:
    """64 rows of ResNet-18, one evaluation each."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, backend], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 4.0


OF_GENERATORS = """
import resource, sys
import torch
from generators import DCGAN
from gibench.attacks import gias, gifd
from gibench.clients import FedSGD
from gibench.engine import Engine
from gibench.types import Batch, ThreatModel
from gibench.victims import lenet

torch.manual_seed(0)
batch = Batch(images=torch.rand(1, 1, 3, 32, 32), labels=torch.zeros(1, 1, dtype=torch.int64),
              image_ids=(("0",),), update_ids=("0",))
observation = FedSGD(lenet(), threat_model=ThreatModel(victim="initial", batch_norm="absent"))(batch)
engine = Engine(memory_gib=1.0, compile="off")
generator = DCGAN(width=64)
attack = {
    "gias": lambda: gias(generator=generator, latent_steps=1, weight_steps=1, restarts=256, engine=engine),
    "gifd": lambda: gifd(generator=generator, steps=1, restarts=1024, engine=engine),
}[sys.argv[1]]()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert attack(observation).images.isfinite().all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("attack", ["gias", "gifd"])
def test_searches_of_a_generator_keep_to_the_budget(attack: str) -> None:
    """Hundreds of restarts of a DCGAN of 3.6 million weights, which GIAS searches for each image."""
    done = subprocess.run([sys.executable, "-c", OF_GENERATORS, attack], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.0
