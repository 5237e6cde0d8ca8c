"""Priors: -log p(x), one file each."""

from gibench.priors.base import Prior
from gibench.priors.total_variation import TotalVariation

__all__ = ["Prior", "TotalVariation"]
