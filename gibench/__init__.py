"""gibench: how much of the private images leaks from a federated-learning update?

Importing the package is cheap; its members load torch and lightning when they are first used.
"""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gibench.inversion import GradientInversion
    from gibench.types import Batch, Observation, Reconstruction, Record, ThreatModel

__all__ = ["Batch", "GradientInversion", "Observation", "Reconstruction", "Record", "ThreatModel", "__version__"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'gibench' has no attribute {name!r}")
    import importlib

    module = "gibench.inversion" if name == "GradientInversion" else "gibench.types"
    return getattr(importlib.import_module(module), name)
