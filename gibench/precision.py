"""Precisions of an attack, and which of them gave the scores of float32 on a fixed panel (rule R14)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict

from gibench.errors import ConfigurationError

PRECISIONS = ("32-true", "64-true", "tf32", "bf16-mixed")
"""32-true: float32 throughout. 64-true: float64. tf32: float32 whose convolutions are rounded to 10 bits (NVIDIA GPUs).
bf16-mixed: the victim's passes in bfloat16; what is searched, distances, priors and the optimizer in float32."""

TOLERANCE = 0.5
"""dB: a precision is within it where the whole 95 % interval of the paired PSNR difference to 32-true is."""

REFERENCES = ("32-true", "64-true")
"""What a precision is held against, and what needs no panel."""

Verdict = Literal["within", "outside"]
Parity = Literal["reference", "within", "outside", "untested"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Frozen):
    """One of the two runs behind an entry, as its manifest describes it; psnr: mean over the images, dB."""

    command: str
    commit: str | None
    torch: str
    machine: dict[str, Any]
    device: str
    backend: str | None
    psnr: float


class Entry(_Frozen):
    """What the panel found: a precision against 32-true, on one kind of device and one architecture.

    device: "cpu" or "cuda". difference, low, high: mean over images of PSNR minus that of the reference, and its 95 %
    interval, in dB. tolerance: TOLERANCE at the time. verdict: `judge`.
    """

    precision: str
    device: str
    architecture: str
    attack: str
    images: int
    updates: int
    difference: float
    low: float
    high: float
    tolerance: float
    verdict: Verdict
    reference: Source
    other: Source

    @property
    def key(self) -> tuple[str, str, str]:
        """What there is one entry of."""
        return self.precision, self.device, self.architecture


class Panel(_Frozen):
    """The file: all entries."""

    panel: tuple[Entry, ...] = ()


def use(precision: str, *, cuda: bool) -> str:
    """Set PyTorch's switches for a precision, and return Lightning's name for it.

    Raises:
        ConfigurationError: for a precision that the device does not have.
    """
    if precision not in PRECISIONS:
        raise ConfigurationError(f"--precision is {precision!r}; choose {', '.join(PRECISIONS)}.")
    if precision == "tf32" and not cuda:
        raise ConfigurationError("tf32 is a precision of NVIDIA GPUs; choose another --precision.")
    rounded = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = rounded  # PyTorch's default rounds convolutions
    torch.backends.cuda.matmul.allow_tf32 = False  # distances and L-BFGS are made of matrix products
    return "32-true" if rounded else precision


def current(lightning: str) -> str:
    """The precision in force, from Lightning's name and PyTorch's switches."""
    rounded = torch.cuda.is_available() and torch.backends.cudnn.allow_tf32
    return "tf32" if rounded and lightning == "32-true" else lightning


@contextmanager
def exact(device: str) -> Iterator[None]:
    """Compute in full precision for a moment: outside autocast, and without rounded convolutions."""
    rounded = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = rounded


def parity(precision: str, *, device: str, architecture: str) -> Parity:
    """What the panel says of a precision on a kind of device ("cpu", "cuda") for a victim's architecture."""
    if precision in REFERENCES:
        return "reference"
    return next((judge(e.low, e.high) for e in panel() if e.key == (precision, device, architecture)), "untested")


def judge(low: float, high: float) -> Verdict:
    """Say whether an interval of differences, in dB, lies within the tolerance as a whole."""
    return "within" if low >= -TOLERANCE and high <= TOLERANCE else "outside"


@cache
def panel() -> tuple[Entry, ...]:
    """The committed results: one for each precision, device and architecture; `gibench compare --panel` writes them."""
    return Panel.model_validate_json(resources.files("gibench").joinpath("parity.json").read_text()).panel
