"""Likelihoods: -log p(g | x), one file each."""

from gibench.likelihoods.base import Likelihood
from gibench.likelihoods.cosine import Cosine
from gibench.likelihoods.flat import Flat
from gibench.likelihoods.gaussian import Gaussian

__all__ = ["Cosine", "Flat", "Gaussian", "Likelihood"]
