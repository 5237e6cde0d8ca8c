"""Precisions of an attack, and which of them gave the scores of float32 on a fixed panel (rule R14)."""

import json
from functools import cache
from importlib import resources
from typing import Any, Literal

import torch

from gibench.errors import ConfigurationError

PRECISIONS = ("32-true", "64-true", "tf32", "bf16-mixed")
"""32-true: float32 throughout. 64-true: float64. tf32: float32 whose products are rounded to 10 bits (NVIDIA GPUs).
bf16-mixed: the victim's passes in bfloat16; what is searched, distances, priors and the optimizer in float32."""

TOLERANCE = 0.5
"""dB: a precision is within it where the whole 95 % interval of the paired PSNR difference to 32-true is."""

Parity = Literal["reference", "within", "outside", "untested"]


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
    torch.backends.cuda.matmul.allow_tf32 = rounded
    return "32-true" if rounded else precision


def current(lightning: str) -> str:
    """The precision in force, from Lightning's name and PyTorch's switches."""
    rounded = torch.cuda.is_available() and torch.backends.cudnn.allow_tf32
    return "tf32" if rounded and lightning == "32-true" else lightning


def parity(precision: str, *, device: str, architecture: str) -> Parity:
    """What the panel says of a precision on a kind of device ("cpu", "cuda") for a victim's architecture."""
    if precision in ("32-true", "64-true"):
        return "reference"
    for entry in panel():
        if (entry["precision"], entry["device"], entry["architecture"]) == (precision, device, architecture):
            inside = entry["low"] >= -TOLERANCE and entry["high"] <= TOLERANCE
            return "within" if inside else "outside"
    return "untested"


@cache
def panel() -> list[dict[str, Any]]:
    """The committed results: one entry for each precision, device and architecture; `gibench parity` writes them."""
    entries: list[dict[str, Any]] = json.loads(resources.files("gibench").joinpath("parity.json").read_text())["panel"]
    return entries
