"""Label sources: given, or inferred from the update, one rule a file."""

from gibench.labels.base import LabelSource
from gibench.labels.given import Given
from gibench.labels.idlg import IDLG

__all__ = ["IDLG", "Given", "LabelSource"]
