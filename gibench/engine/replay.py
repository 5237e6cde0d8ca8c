"""Replay a step from a captured graph of CUDA kernels, so that the processor launches one thing instead of hundreds."""

import logging
from collections.abc import Callable

import torch

from gibench.engine.memory import is_out_of_memory

log = logging.getLogger("gibench")

WARM_UP = 3  # steps on a side stream before the capture, as torch asks for


class Replay:
    """Calls a step again and again; on CUDA its kernels are captured once and then replayed.

    The step works in place on tensors that stay where they are, takes no decision on their values and reads none. What
    it cannot capture is said once, and called as it is. On other devices every call is the step itself.

    Args:
        step: the function.
        device: where its tensors are.
        capture: whether to capture at all.
    """

    def __init__(self, step: Callable[[], None], device: torch.device, *, capture: bool = True) -> None:
        self.step = step
        self.device = device
        self.capture = capture and device.type == "cuda"
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Make one step."""
        if self.graph is not None:
            self.graph.replay()
        elif self.capture:
            with torch.cuda.device(self.device):
                self._begin()
        else:
            self.step()

    def _begin(self) -> None:
        """Warm up on a side stream; then capture the step, which does not run it, and replay it once."""
        self.calls += 1
        if self.calls <= WARM_UP:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.step()
            torch.cuda.current_stream().wait_stream(side)
            return
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.step()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).split("\n")[0]
            log.warning("the step cannot be captured (%s); every kernel is launched by itself.", reason)
            self.capture = False
        if not self.capture:
            del graph
            torch.cuda.synchronize()
            self.step()
            return
        self.graph = graph
        graph.replay()
