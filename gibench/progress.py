"""Progress of a long inner loop, without tying attacks to a terminal.

A search calls `report`; whoever wants to watch installs a watcher with `watching`. Without one, `report` does nothing.
What watchers take is not the search's: a `stopwatch` stands still meanwhile (rule R10).
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """Iteration `done` of `total` of a search.

    objective: (R,). images: a function that makes (R, B, C, H, W), in pixels, of the current iterate.
    """

    done: int
    total: int
    objective: Tensor
    images: Callable[[], Tensor]


Watcher = Callable[[Step], None]
_watchers: ContextVar[tuple[tuple[object, Watcher], ...]] = ContextVar("watchers", default=())
_part: ContextVar[tuple[int, int]] = ContextVar("part", default=(0, 0))


def report(step: Step) -> None:
    """Tell every watcher."""
    watchers = _watchers.get()
    if not watchers:
        return
    before, total = _part.get()
    if total:
        step = step._replace(done=before + step.done, total=total)
    with untimed():
        for _, watcher in watchers:
            watcher(step)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let `watcher` see the steps of every search inside the block."""
    own = object()  # blocks may end in any order, and one watcher may be installed twice
    _watchers.set((*_watchers.get(), (own, watcher)))
    try:
        yield
    finally:
        _watchers.set(tuple(entry for entry in _watchers.get() if entry[0] is not own))


@contextmanager
def part(before: int, total: int) -> Iterator[None]:
    """Count the steps of searches inside the block on from `before`, of `total`: they are parts of one search."""
    token = _part.set((before, total))
    try:
        yield
    finally:
        _part.reset(token)


@contextmanager
def untimed() -> Iterator[None]:
    """Let a running stopwatch stand still: what the block does is no part of the attack."""
    running = _stopwatch.get()
    with running.pause() if running else nullcontext():
        yield


@contextmanager
def unwatched() -> Iterator[None]:
    """Let nobody see the steps of searches inside the block, which only prepare the one to be watched."""
    token = _watchers.set(())
    try:
        yield
    finally:
        _watchers.reset(token)


class Stopwatch:
    """Seconds of work on a device, less those that watchers took; see `stopwatch`.

    On CUDA a pause is what the stream itself measures between two events. To wait for the device at each step would
    slow the search down, and not to wait would charge the search's own work to the first watcher that waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._paused = 0.0
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._start = clock(device)

    def seconds(self) -> float:
        """Seconds since the start, once the device has done what it was asked to do, without the pauses."""
        elapsed = clock(self.device) - self._start
        self._collect()
        return elapsed - self._paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Stand still inside the block."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            try:
                yield
            finally:
                self._paused += time.perf_counter() - start
            return
        first = self._mark()
        try:
            yield
        finally:
            self._pending.append((first, self._mark()))
            self._collect()

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _collect(self) -> None:
        """Add up the pauses that the device has come to the end of, so that events do not pile up."""
        while self._pending and self._pending[0][1].query():
            first, last = self._pending.popleft()
            self._paused += first.elapsed_time(last) / 1000


_stopwatch: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def stopwatch(device: torch.device) -> Iterator[Stopwatch]:
    """Take the time of what happens on `device` inside the block, and not that of its watchers."""
    running = Stopwatch(device)
    token = _stopwatch.set(running)
    try:
        yield running
    finally:
        _stopwatch.reset(token)
