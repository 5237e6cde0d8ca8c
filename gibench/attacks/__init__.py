"""Attacks, one file for each paper."""

from gibench.attacks.analytic import BiasAttack
from gibench.attacks.base import Attack
from gibench.attacks.bayes_optimal import bayes_optimal
from gibench.attacks.continuation import Continuation
from gibench.attacks.controls import WrongUpdate, prior_alone
from gibench.attacks.dlg import dlg
from gibench.attacks.ggl import ggl
from gibench.attacks.gias import gias
from gibench.attacks.gifd import gifd
from gibench.attacks.gradient_matching import GradientMatching
from gibench.attacks.gradinversion import gradinversion
from gibench.attacks.idlg import idlg
from gibench.attacks.inverting_gradients import (
    inverting_gradients,
    inverting_gradients_legacy,
    inverting_gradients_modern,
)
from gibench.attacks.label_inference import LabelInference
from gibench.attacks.r_gap import RGAP
from gibench.attacks.second_order import second_order
from gibench.attacks.spear import SPEAR
from gibench.attacks.undo_transformation import UndoTransformation

__all__ = [
    "RGAP",
    "SPEAR",
    "Attack",
    "BiasAttack",
    "Continuation",
    "GradientMatching",
    "LabelInference",
    "UndoTransformation",
    "WrongUpdate",
    "bayes_optimal",
    "dlg",
    "ggl",
    "gias",
    "gifd",
    "gradinversion",
    "idlg",
    "inverting_gradients",
    "inverting_gradients_legacy",
    "inverting_gradients_modern",
    "prior_alone",
    "second_order",
]
