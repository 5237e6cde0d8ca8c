"""The bias-corrected rule: LLG's greedy count on the bias gradient, the default of the framework `breaching`."""

from torch import Tensor

from gibench.labels.base import LabelSource
from gibench.labels.head import ascending, bias_update, most_negative, spend
from gibench.needs import Needs
from gibench.types import Observation


class BiasCorrected(LabelSource):
    r"""Count labels by the bias gradient of the last layer, which features do not enter: they may have any sign.

    Every class with a negative entry is counted once, which is certain for an exact gradient (see `BiasSign`). One
    image of a class is taken to lower its entry by

    .. math:: m = \frac{1}{B} \sum_{c: \nabla b_c < 0} \nabla b_c

    Counted images are taken off, and the class with the lowest rest is counted next, until there are B. There is no
    factor 1 + 1/K as in `LLG`. Multiplying the update by a number changes nothing, so that FedAvg updates need no
    rate. Where more than B classes are negative the B lowest stay; where none is, the lowest takes all. Labels are in
    ascending order.

    Raises:
        RefusalError: when the last linear layer has no bias, or there is none.
        ThreatModelError: when the batch size is hidden.
    """

    needs = Needs(batch_size=("known",))

    def forward(self, observation: Observation) -> Tensor:
        """See `LabelSource`."""
        size = self.check(observation)
        bias = bias_update(observation)
        impact = bias.clamp(max=0).sum(1) / size
        return ascending(spend(bias, impact, most_negative(bias, size), size))
