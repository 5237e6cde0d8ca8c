"""Progress of a long inner loop, without tying attacks to a terminal.

A search calls `report`; whoever wants to watch installs a watcher with `watching`. Without one, `report` does nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


def report(step: Step) -> None:
    """Tell every watcher."""
    for watcher in _watchers.get():
        watcher(step)


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Let `watcher` see the steps of every search inside the block."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)
