"""iDLG's label rule (Zhao, Mopuri, Bilen 2020): the true class alone has a negative gradient in the last layer."""

from torch import Tensor

from gibench.errors import RefusalError
from gibench.labels.base import LabelSource
from gibench.labels.head import weight_update
from gibench.needs import Needs
from gibench.types import Observation


class IDLG(LabelSource):
    """argmin_c sum_j dl/dW[c, j] over the last linear layer, for B = 1.

    For one-hot cross-entropy dl/dz_c = p_c - 1[c = y], so that with non-negative features (sigmoid, ReLU) only row y
    has a negative sum. We use the weights alone, as the paper does; the sign of the bias gradient is a rule of its own.

    Raises:
        RefusalError: for B > 1, of which the rule names one class only, and when the victim has no linear layer with
            one row for each class.
        ThreatModelError: when the batch size is hidden.
    """

    needs = Needs(batch_size=("known",))

    def forward(self, observation: Observation) -> Tensor:
        """See `LabelSource`."""
        if self.check(observation) != 1:
            raise RefusalError("iDLG's label rule is for batches of one image; give the labels, or another rule.")
        return weight_update(observation).sum(2).argmin(1, keepdim=True)
