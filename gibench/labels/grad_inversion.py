"""GradInversion's label restoration (Yin et al., "See through gradients", CVPR 2021)."""

from torch import Tensor

from gibench.errors import RefusalError
from gibench.labels.base import LabelSource
from gibench.labels.head import weight_update
from gibench.needs import Needs
from gibench.types import Observation


class GradInversionRule(LabelSource):
    r"""The B classes whose row of the last weight's gradient has the most negative entry, each once.

    .. math:: \hat y = \operatorname{argsort}_c \left( \min_j \nabla W_{cj} \right)_{1 \dots B}

    The minimum in the place of iDLG's sum: one strongly negative entry is enough where the contributions of classes
    mix. It needs non-negative features and batches of different labels; a label that occurs twice is named once, and
    an absent class takes the other place, by construction. Labels are in ascending order.

    Raises:
        RefusalError: when B exceeds the number of classes, or the victim has no linear head.
        ThreatModelError: when the batch size is hidden.
    """

    needs = Needs(batch_size=("known",))

    def forward(self, observation: Observation) -> Tensor:
        """See `LabelSource`."""
        size, classes = self.check(observation), observation.num_classes
        if size > classes:
            raise RefusalError(
                f"GradInversion's rule names each class once at most: {classes} classes for {size} images; take a rule "
                "that counts, such as ILRG."
            )
        lowest = weight_update(observation).amin(2).argsort(dim=1, stable=True)
        return lowest[:, :size].sort(1).values
