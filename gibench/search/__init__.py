"""Search: what is optimized (pixels, coefficients) and how (Adam, L-BFGS), one file each."""

from gibench.search.adam import Adam
from gibench.search.ball import Ball
from gibench.search.base import Search
from gibench.search.lbfgs import LBFGS, LineSearchName
from gibench.search.levenberg_marquardt import LevenbergMarquardt
from gibench.search.objective import Objective
from gibench.search.pixels import Pixels
from gibench.search.principal_components import PrincipalComponents
from gibench.search.ramp import Ramp
from gibench.search.representation import Representation

__all__ = [
    "LBFGS",
    "Adam",
    "Ball",
    "LevenbergMarquardt",
    "LineSearchName",
    "Objective",
    "Pixels",
    "PrincipalComponents",
    "Ramp",
    "Representation",
    "Search",
]
