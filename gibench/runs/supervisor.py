"""Start the processes of a run on this machine, and end them together; light, because it computes nothing itself.

The supervisor is a process of its own, so that no failure of a rank, and no rank that waits for a failed one, can stop
it. It may kill ranks at any time: what is recorded is on disk.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from gibench.errors import ConfigurationError

LAST_WORDS = "GIBENCH_LAST_WORDS"
"""Set for a supervised process: the file for its error, because only the first error of all processes is shown."""

GRACE = 5.0  # seconds in which rank 0 may close its logs


def is_supervised() -> bool:
    """Whether this process was started by `supervise`."""
    return LAST_WORDS in os.environ


def is_needed(accelerator: str, devices: int, nodes: int) -> bool:
    """Whether processes must be started: not for one, nor where torchrun or srun has started them.

    Raises:
        ConfigurationError: for numbers below one, more GPUs than there are, or nodes that cannot find each other.
    """
    for name, number in {"devices": devices, "nodes": nodes}.items():
        if number < 1:
            raise ConfigurationError(f"--{name} is {number}; set it to 1 or more.")
    if devices > 1 and accelerator != "cpu":
        _check_gpus(accelerator, devices)
    started = "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if devices * nodes == 1 or started:
        return False
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if name not in os.environ]
    if nodes > 1 and missing:
        raise ConfigurationError(f"--nodes is {nodes}; start the same command on each node with {missing[0]} set.")
    return True


def _check_gpus(accelerator: str, devices: int) -> None:
    import torch  # takes seconds, and is not needed on a CPU

    there = torch.cuda.device_count()
    if devices > there and (there or accelerator != "auto"):
        raise ConfigurationError(
            f"--devices is {devices}, this machine has {there} CUDA GPUs; ask for fewer, or pass --accelerator cpu."
        )


def supervise(command: Sequence[str], *, devices: int, nodes: int) -> int:
    """Run `command` in one process per device and return 0, or 1 once the first that failed has had its say.

    Raises:
        KeyboardInterrupt: on Ctrl-C or SIGTERM to any of them, when all have ended.
    """
    with tempfile.TemporaryDirectory() as folder, _sigterm_interrupts():
        words = [Path(folder) / f"rank{rank}" for rank in range(devices)]
        addresses = (
            {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"} if nodes == 1 else {}
        )
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, path in enumerate(words):
                environment = {**os.environ, **addresses, "LOCAL_RANK": str(rank), LAST_WORDS: str(path)}
                processes.append(_start(command, environment, silent=rank > 0))
            statuses = _wait(processes)
        finally:
            _stop(processes)
        if not any(statuses):
            return 0
        if 130 in statuses:
            raise KeyboardInterrupt
        print(_cause(statuses, words), end="", file=sys.stderr)
        return 1


def obey() -> None:
    """Make a supervised process end with its supervisor, and leave Ctrl-C to it; elsewhere do nothing."""
    if not is_supervised():
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _leave_traceback
    threading.Thread(target=_end_with_supervisor, daemon=True).start()


def complain(line: str) -> None:
    """Print an error; a supervised process leaves it to its supervisor."""
    if is_supervised():
        Path(os.environ[LAST_WORDS]).write_text(line + "\n", encoding="utf-8")
    else:
        print(line, file=sys.stderr)


def _start(command: Sequence[str], environment: dict[str, str], *, silent: bool) -> "subprocess.Popen[bytes]":
    """Start a process; its standard input is how it learns that the supervisor is gone."""
    output = subprocess.DEVNULL if silent else None
    return subprocess.Popen(  # noqa: S603 - this program again
        command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output
    )


def _wait(processes: Sequence["subprocess.Popen[bytes]"]) -> list[int | None]:
    """Wait until all have succeeded or one has failed."""
    while True:
        statuses = [process.poll() for process in processes]
        if any(statuses) or None not in statuses:
            return statuses
        time.sleep(0.05)


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End what still runs: rank 0 with time to close its logs, the others at once."""
    for process in processes[1:]:
        process.kill()
    for process in processes[:1]:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
    for process in processes:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _cause(statuses: Sequence[int | None], words: Sequence[Path]) -> str:
    """What went wrong first: those who lose a process complain, too, but later."""
    killed = [(rank, -status) for rank, status in enumerate(statuses) if status is not None and status < 0]
    if killed:
        rank, number = killed[0]
        return (
            f"gibench: process {rank + 1} of {len(statuses)} was ended by {signal.Signals(number).name}; what is "
            "recorded is kept, and the same command continues.\n"
        )
    said = sorted((path for path in words if path.exists()), key=lambda path: path.stat().st_mtime_ns)
    if said:
        return said[0].read_text(encoding="utf-8")
    rank = next(rank for rank, status in enumerate(statuses) if status)
    return f"gibench: process {rank + 1} of {len(statuses)} ended with status {statuses[rank]} and said nothing.\n"


def _leave_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    complain("".join(traceback.format_exception(kind, error, trace)).rstrip())


def _end_with_supervisor() -> None:
    """Nothing is ever written to standard input: it ends when the supervisor does."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM stop the supervisor as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
