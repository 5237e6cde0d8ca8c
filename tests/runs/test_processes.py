"""Runs of several processes: the records of one, whatever happens to the processes on the way."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gibench.records import read_records

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys
if "GIBENCH_LAST_WORDS" in os.environ:  # the supervisor itself needs no metrics
    import gibench.metrics.image_quality as quality
    quality.load_network = lambda net, download: "left out of this test."
from gibench.cli import main
sys.exit(main())
"""
MODULE = """
import os, time
import gibench.metrics.image_quality as quality
from gibench.attacks import Attack
from gibench.types import Observation, Reconstruction

quality.load_network = lambda net, download: "left out of this test."

class Failing(Attack):
    def forward(self, observation: Observation) -> Reconstruction:
        if os.environ["LOCAL_RANK"] == "1":
            raise ValueError("the second process has had enough")
        time.sleep(100)
        raise AssertionError("the first process was not ended")
"""


def start(
    *arguments: object, program: tuple[str, ...] = ("-c", SCRIPT), path: str = str(ROOT), pids: Path | None = None
) -> "subprocess.Popen[str]":
    """Start a program in a session of its own, so that all its processes can be killed together."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "NODE_RANK")}
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GIBENCH_WEIGHTS": "", "PIDS": str(pids)}
    return subprocess.Popen(
        [sys.executable, *program, *(str(argument) for argument in arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    try:
        printed, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, printed, errors


def rows(folder: Path) -> list[dict[str, Any]]:
    """The records in their order, without what time decides."""
    return [record.model_dump(exclude={"seconds"}) for record in read_records(folder / "records.jsonl")]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest without what the number of processes decides."""
    tree: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    for name in ("command", "started", "finished", "platform"):
        del tree[name]
    for cell in tree["cells"]:
        for name in ("seconds", "peak_memory_bytes", "processes"):
            del cell[name]
    return tree


def shares(folder: Path) -> list[Path]:
    return sorted(folder.glob("records.rank*"))


def wait_until(happened: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that are started: sums over several threads differ in the last digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def odd(suite: Path) -> Path:
    """The tiny suite with three groups where it is attacked, and one, fewer than processes, in the other scenario."""
    tree = yaml.safe_load(suite.read_text())
    tree["scenarios"]["mlp"]["data"]["init_args"]["together"] = 6
    tree["cells"][0]["attacks"] = ["ig"]
    suite.write_text(yaml.safe_dump(tree))
    return suite


def test_two_processes_record_what_one_does_killed_or_not(gibench: Command, odd: Path, tmp_path: Path) -> None:
    one, two, mixed = tmp_path / "one", tmp_path / "two", tmp_path / "mixed"
    assert gibench("run", odd, "--out", one)[0] == 0
    shutil.copytree(one, mixed)

    status, printed, errors = finish(start("run", odd, "--out", two, "--devices", 2, "--accelerator", "cpu"))
    assert (status, errors) == (0, "")
    assert printed.count("report: ") == 1
    assert rows(two) == rows(one)
    assert table(two) == table(one)
    for left, right in zip(manifest(two)["cells"], manifest(one)["cells"], strict=True):
        assert left == right
    assert manifest(two) == manifest(one)
    assert {cell["processes"] for cell in json.loads((two / "manifest.json").read_text())["cells"]} == {2}
    assert not shares(two)

    # One process, killed in its first cell; then two, killed within a cell, one of them writing; then one to the end.
    lines = (one / "records.jsonl").read_text().splitlines(keepends=True)
    (mixed / "records.jsonl").write_text("".join(lines[: 4 * 6 + 1]))
    process = start("run", odd, "--out", mixed, "--devices", 2, "--accelerator", "cpu")
    wait_until(lambda: bool(shares(mixed)), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert shares(mixed)
    (mixed / "records.rank1.jsonl").open("a").write(lines[-1][:40])
    status, printed, errors = gibench("run", odd, "--out", mixed)
    assert status == 0, errors
    assert "torn" in printed
    assert rows(mixed) == rows(one)
    assert table(mixed) == table(one)
    assert [path.name for path in shares(mixed)] == ["records.rank1.jsonl.torn"]


def test_a_process_that_fails_ends_all(single: Path, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(MODULE)
    options = ("--devices", 2, "--accelerator", "cpu", "--attack", "failing.Failing")
    arguments = ("run", single, "--out", tmp_path / "run", *options)
    status, _, errors = finish(start(*arguments, program=("-m", "gibench.cli"), path=f"{ROOT}{os.pathsep}{tmp_path}"))
    assert status == 1
    assert errors.count("rror:") == 1, errors
    assert errors.endswith("ValueError: the second process has had enough\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", 0], "--devices is 0"),
        (["--nodes", 0], "--nodes is 0"),
        (["--devices", 1000, "--accelerator", "gpu"], "GPUs"),
        (["--nodes", 2, "--accelerator", "cpu"], "MASTER_ADDR"),
    ],
    ids=str,
)
def test_bad_numbers_are_one_clear_line(
    gibench: Command, single: Path, tmp_path: Path, options: list[object], words: str
) -> None:
    status, _, errors = gibench("run", single, "--out", tmp_path / "run", *options)
    assert status == 1
    assert errors.startswith("gibench: ")
    assert errors.count("\n") == 1
    assert words in errors
    assert not (tmp_path / "run").exists()


SUPERVISOR = """
import sys
from gibench.runs.supervisor import supervise
try:
    sys.exit(supervise([sys.executable, "-c", sys.argv[1]], devices=2, nodes=1))
except KeyboardInterrupt:
    sys.exit(130)
"""
OBEY = """
import os, signal, sys, time
from pathlib import Path
from gibench.runs.supervisor import complain, obey
obey()
rank = int(os.environ["LOCAL_RANK"])
"""
SLEEP = OBEY + "Path(os.environ['PIDS'], str(os.getpid())).touch(); time.sleep(100)"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("", 0, ""),
        ("if rank: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(100)", 1, "process 2 of 2 was ended by SIGKILL"),
        ("if rank: sys.exit(3)\ntime.sleep(100)", 1, "process 2 of 2 ended with status 3"),
        ("time.sleep(0.5 - 0.5 * rank); complain(f'lost by {rank}'); time.sleep(1); sys.exit(1)", 1, "lost by 1"),
        ("if not rank: raise ValueError('bug')\ntime.sleep(100)", 1, "ValueError: bug"),
        ("if rank: sys.exit(130)\ntime.sleep(100)", 130, ""),
    ],
    ids=["success", "killed", "silent", "first of two", "bug", "interrupted"],
)
def test_the_supervisor_says_what_failed_first(body: str, status: int, words: str) -> None:
    ended, _, errors = finish(start(OBEY + body, program=("-c", SUPERVISOR)))
    assert ended == status
    assert words in errors
    assert "lost by 0" not in errors


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_processes_end_with_their_supervisor(tmp_path: Path, number: int, status: int) -> None:
    supervisor = start(SLEEP, program=("-c", SUPERVISOR), pids=tmp_path)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2, supervisor)
    supervisor.send_signal(number)
    assert supervisor.wait(60) == status
    deadline = time.monotonic() + 60
    while any(is_running(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    supervisor.communicate()
