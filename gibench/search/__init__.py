"""Search: what is optimized (pixels, coefficients) and how (Adam, L-BFGS), one file each."""

from gibench.search.adam import Adam
from gibench.search.ball import Ball
from gibench.search.base import Search
from gibench.search.cma_es import CMAES
from gibench.search.features import Features
from gibench.search.generator import Generator
from gibench.search.generator_weights import GeneratorWeights
from gibench.search.latent import Latent
from gibench.search.lbfgs import LBFGS, LineSearchName
from gibench.search.levenberg_marquardt import LevenbergMarquardt
from gibench.search.objective import Objective
from gibench.search.pixels import Pixels
from gibench.search.principal_components import PrincipalComponents
from gibench.search.ramp import Ramp
from gibench.search.representation import Given, Representation
from gibench.search.stage import Stage

__all__ = [
    "CMAES",
    "LBFGS",
    "Adam",
    "Ball",
    "Features",
    "Generator",
    "GeneratorWeights",
    "Given",
    "Latent",
    "LevenbergMarquardt",
    "LineSearchName",
    "Objective",
    "Pixels",
    "PrincipalComponents",
    "Ramp",
    "Representation",
    "Search",
    "Stage",
]
