"""Likelihoods: -log p(g | x), one file each."""

from gibench.likelihoods.base import Hidden, Hypothesis, Likelihood
from gibench.likelihoods.cosine import Cosine
from gibench.likelihoods.features import Features
from gibench.likelihoods.flat import Flat
from gibench.likelihoods.gaussian import Gaussian
from gibench.likelihoods.interval import Interval
from gibench.likelihoods.laplace import Laplace
from gibench.likelihoods.masked import Masked, Without
from gibench.likelihoods.mixture import Mixture
from gibench.likelihoods.partial import Partial
from gibench.likelihoods.sign import Sign
from gibench.likelihoods.support import Support

__all__ = [
    "Cosine",
    "Features",
    "Flat",
    "Gaussian",
    "Hidden",
    "Hypothesis",
    "Interval",
    "Laplace",
    "Likelihood",
    "Masked",
    "Mixture",
    "Partial",
    "Sign",
    "Support",
    "Without",
]
