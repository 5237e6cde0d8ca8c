"""Generative priors: models that map a latent through features to an image, and their training."""

from generators.range_limit import RangeLimit

__all__ = ["RangeLimit"]
