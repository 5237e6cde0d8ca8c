"""Priors: -log p(x), one file each."""

from gibench.priors.base import Prior
from gibench.priors.batch_norm_statistics import BatchNormStatistics
from gibench.priors.gaussian_pixels import GaussianPixels
from gibench.priors.group_consistency import GroupConsistency
from gibench.priors.l2_norm import L2Norm
from gibench.priors.principal_components import ProbabilisticPCA
from gibench.priors.total_variation import TotalVariation

__all__ = [
    "BatchNormStatistics",
    "GaussianPixels",
    "GroupConsistency",
    "L2Norm",
    "Prior",
    "ProbabilisticPCA",
    "TotalVariation",
]
