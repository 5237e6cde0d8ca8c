"""Attacks, one file for each paper."""

from gibench.attacks.analytic import BiasAttack
from gibench.attacks.base import Attack
from gibench.attacks.controls import WrongUpdate, prior_alone
from gibench.attacks.dlg import dlg
from gibench.attacks.gradient_matching import GradientMatching
from gibench.attacks.idlg import idlg
from gibench.attacks.inverting_gradients import inverting_gradients

__all__ = [
    "Attack",
    "BiasAttack",
    "GradientMatching",
    "WrongUpdate",
    "dlg",
    "idlg",
    "inverting_gradients",
    "prior_alone",
]
