"""The engine: compare the updates of many dummy batches with the observed ones, as fast as the machine allows."""

from gibench.engine.backends import Backend
from gibench.engine.choice import Choice, Prepared
from gibench.engine.engine import Engine
from gibench.engine.gradient import LocalGradient

__all__ = ["Backend", "Choice", "Engine", "LocalGradient", "Prepared"]
