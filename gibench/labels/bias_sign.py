"""The sign of the last layer's bias gradient: a class with a negative one is in the batch, for certain."""

import torch
from torch import Tensor

from gibench.labels.base import LabelSource
from gibench.labels.head import ascending, bias_update, most_negative
from gibench.needs import Needs
from gibench.types import Observation


class BiasSign(LabelSource):
    r"""The classes whose bias gradient is negative, a set; the remaining places are dealt out among them in turn.

    .. math:: \nabla b_c = \frac{1}{B} \sum_n (p_{n,c} - 1[y_n = c]) \ge 0 \quad \text{where no } y_n = c

    (or the same, up to a factor, of a FedAvg update of few small steps). So an exact, undefended gradient never names
    an absent class. It may miss a present one: what its few images take away, the probabilities of all others may
    outweigh. For B = 1 the label is certain, whatever the features.

    The rule says which classes occur, not how often. Where it names fewer than B, we fill the batch by naming them
    again in turn, from the most negative on: of the multiset, only its support is an inference. Where it names more
    (noise), the B most negative stay; where none is negative, the lowest one stands for all. Labels are in ascending
    order.

    Raises:
        RefusalError: when the last linear layer has no bias, or there is none.
        ThreatModelError: when the batch size is hidden.
    """

    needs = Needs(batch_size=("known",))

    def forward(self, observation: Observation) -> Tensor:
        """See `LabelSource`."""
        size = self.check(observation)
        bias = bias_update(observation)
        found = most_negative(bias, size)
        found |= (~found.any(1, keepdim=True)) & (bias.argsort(dim=1, stable=True).argsort(dim=1) == 0)
        number = found.sum(1, keepdim=True)
        rank = torch.where(found, bias, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        return ascending(found * (size // number + (rank < size % number)))
