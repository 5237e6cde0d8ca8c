"""Rules: how the gradient of one kind of layer follows from what enters it and from the loss's derivative behind it."""

from gibench.engine.rules.base import Capture, Rule, UnsupportedLayerError
from gibench.engine.rules.registry import is_layer, rule_of

__all__ = ["Capture", "Rule", "UnsupportedLayerError", "is_layer", "rule_of"]
