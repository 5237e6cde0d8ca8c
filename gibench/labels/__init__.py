"""Label sources: given, or inferred from the update, one rule a file."""

from gibench.labels.base import LabelSource
from gibench.labels.bias_corrected import BiasCorrected
from gibench.labels.bias_sign import BiasSign
from gibench.labels.given import Given
from gibench.labels.grad_inversion import GradInversionRule
from gibench.labels.idlg import IDLG
from gibench.labels.ilrg import ILRG
from gibench.labels.llg import LLG
from gibench.labels.llg_plus import LLGPlus
from gibench.labels.llg_star import LLGStar
from gibench.labels.random_labels import RandomLabels

__all__ = [
    "IDLG",
    "ILRG",
    "LLG",
    "BiasCorrected",
    "BiasSign",
    "Given",
    "GradInversionRule",
    "LLGPlus",
    "LLGStar",
    "LabelSource",
    "RandomLabels",
]
