"""Attacks, one file for each paper."""

from gibench.attacks.analytic import BiasAttack
from gibench.attacks.base import Attack
from gibench.attacks.bayes_optimal import bayes_optimal
from gibench.attacks.controls import WrongUpdate, prior_alone
from gibench.attacks.dlg import dlg
from gibench.attacks.gradient_matching import GradientMatching
from gibench.attacks.idlg import idlg
from gibench.attacks.inverting_gradients import inverting_gradients
from gibench.attacks.undo_transformation import UndoTransformation

__all__ = [
    "Attack",
    "BiasAttack",
    "GradientMatching",
    "UndoTransformation",
    "WrongUpdate",
    "bayes_optimal",
    "dlg",
    "idlg",
    "inverting_gradients",
    "prior_alone",
]
