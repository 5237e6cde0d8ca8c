"""Activations by name, so that an architecture can be attacked with a smooth one in place of its published one.

With ReLU the update jumps where a unit switches, and second-order searches stop there; with a smooth activation the
update has a Jacobian everywhere.
"""

from collections.abc import Callable
from typing import Literal

from torch import nn

from gibench.errors import ConfigurationError

Activation = Literal["relu", "sigmoid", "softplus", "silu", "gelu"]

LINEAR_ABOVE = 40.0
"""Where softplus is replaced by its argument: e^-40 is below the rounding of float64. PyTorch's 20 is not (2e-9)."""

_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "softplus": lambda: nn.Softplus(threshold=LINEAR_ABOVE),
    "silu": nn.SiLU,
    "gelu": nn.GELU,  # the exact one, x Phi(x)
}


def activation_layer(name: Activation) -> nn.Module:
    """Return a new layer.

    Args:
        name: "relu", "sigmoid", "softplus" (log(1 + e^x)), "silu" (x sigmoid(x)) or "gelu" (x Phi(x), with erf).

    Raises:
        ConfigurationError: for another name.
    """
    if name not in _LAYERS:
        raise ConfigurationError(f"activation is {name!r}; choose {', '.join(_LAYERS)}.")
    return _LAYERS[name]()


def architecture_name(published: str, activation: Activation, own: Activation) -> str:
    """Name an architecture in records: `published` with its own activation, else followed by "-" and the activation."""
    return published if activation == own else f"{published}-{activation}"
