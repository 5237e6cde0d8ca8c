"""LLG (Wainakh et al., "User-Level Label Leakage from Gradients in Federated Learning", PoPETs 2022)."""

from torch import Tensor

from gibench.labels.base import LabelSource
from gibench.labels.head import ascending, last_linear, most_negative, row_sums, spend
from gibench.needs import Needs
from gibench.types import Observation


class LLG(LabelSource):
    r"""Count labels by the sums of the rows of the last weight's gradient, without further knowledge.

    With S_c the sum of row c, every class with S_c < 0 is counted once, since with non-negative features only a class
    that occurs can be negative. One image of a class is taken to lower its sum by

    .. math:: m = \frac{1 + 1/K}{B} \sum_{c: S_c < 0} S_c

    Counted images are taken off (S_c - m), and the class with the lowest rest is counted next, until there are B. That
    fits a model near its random start, whose probabilities are nearly equal. Where more than B classes are negative
    (noise, signed features) the B lowest stay; where none is, the lowest takes all. Labels are in ascending order.

    Multiplying the update by a number changes nothing: a FedAvg update of S steps needs no division by the rate or by S
    (the published code divides by S because its B is that of one step; ours is the number of private images). That the
    weights move meanwhile is not modeled.

    Raises:
        RefusalError: when the victim has no linear head.
        ThreatModelError: when the batch size is hidden.
    """

    needs = Needs(batch_size=("known",))

    def forward(self, observation: Observation) -> Tensor:
        """See `LabelSource`."""
        size = self.check(observation)
        sums = row_sums(observation.update, last_linear(observation))
        impact = (1 + 1 / observation.num_classes) / size * sums.clamp(max=0).sum(1)
        return ascending(spend(sums, impact, most_negative(sums, size), size))
