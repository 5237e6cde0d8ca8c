"""iLRG (Ma et al., "Instance-wise Batch Label Restoration via Gradients in Federated Learning", ICLR 2023)."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.errors import ConfigurationError
from gibench.labels.base import LabelSource
from gibench.labels.head import ascending, bias_update, last_linear, weight_update
from gibench.needs import Needs
from gibench.types import Observation

LARGEST = 1e10


class ILRG(LabelSource):
    r"""Count labels by a linear system whose coefficients are the probabilities of each class's mean feature.

    Row c of the last layer's gradient is a weighted sum of features, with weights whose sum is the bias gradient. So

    .. math:: \bar e_c = \nabla W_c / \nabla b_c, \qquad \bar p_c = \mathrm{softmax}(\alpha (W \bar e_c + b))

    stand for the features and the probabilities of the images of class c, and the counts k solve, in the least-squares
    sense,

    .. math:: \sum_j k_j = B, \qquad \sum_j k_j \bar p_{j,i} - k_i = B \nabla b_i \quad \text{for all } i

    They are clipped at 0 and rounded to the nearest whole numbers that sum to B. Exact where the probabilities hardly
    differ within a class, as on untrained models. It is computed in float64. Where a bias gradient is nearly zero, the
    ratio is meaningless and may be huge; its entries are clipped at ±1e10, and a ratio 0 / 0 counts as 0.

    We differ from the published code where counts do not sum to B: it changes each class by one at most and may miss B;
    ours are the nearest that do sum to B. It sets counts above B to 0, ours have no upper limit but the sum. And it
    scales the logits by alpha = 0.01 in one place, which makes the probabilities nearly uniform; the formula has 1.

    Ours is `shrinkage`, which repairs the weak spot: where a class's share of the batch nearly equals its probability,
    its bias gradient is nearly zero, and the ratio is noise. With tau > 0, row c's ratio becomes the least-squares one
    that is drawn to the ratio of all rows together, as strongly as the bias gradient is small:

    .. math:: \bar e_c = \frac{\nabla b_c \nabla W_c + \lambda \bar e}{\nabla b_c^2 + \lambda}, \quad
        \bar e = \frac{\sum_c \nabla b_c \nabla W_c}{\sum_c \nabla b_c^2}, \quad
        \lambda = \frac{\tau^2}{K} \sum_c \nabla b_c^2

    Labels are in ascending order.

    Args:
        alpha: factor on the logits.
        shrinkage: tau; 0 is as published.

    Raises:
        RefusalError: when the last linear layer has no bias, or there is none.
        ThreatModelError: when the batch size is hidden, and for FedAvg: the system needs the length of the gradient,
            at weights that do not move.
    """

    needs = Needs(batch_size=("known",), update=("gradient",))

    def __init__(self, *, alpha: float = 1.0, shrinkage: float = 0.0) -> None:
        super().__init__()
        if alpha <= 0 or shrinkage < 0:
            raise ConfigurationError(f"alpha is {alpha}, shrinkage {shrinkage}; alpha > 0 and shrinkage >= 0.")
        self.alpha = alpha
        self.shrinkage = shrinkage

    def forward(self, observation: Observation) -> Tensor:
        """See `LabelSource`."""
        size = self.check(observation)
        return ascending(whole(self.counts(observation), size))

    def counts(self, observation: Observation) -> Tensor:
        """The solution k before it is rounded, (U, K), float64."""
        size = observation.known_batch_size()
        weight, bias = weight_update(observation), bias_update(observation)
        layer = cast(nn.Linear, observation.victim.get_submodule(last_linear(observation)))
        logits = F.linear(self._features(weight, bias), layer.weight.double(), layer.bias.double())
        probabilities = torch.softmax(self.alpha * logits, 2)
        equations = probabilities.transpose(1, 2) - torch.eye(observation.num_classes).to(probabilities)
        system = torch.cat([torch.ones_like(equations[:, :1]), equations], 1)
        values = torch.cat([torch.full_like(bias[:, :1], size), size * bias], 1)
        counts: Tensor = torch.linalg.pinv(system) @ values[..., None]
        return counts[..., 0].detach()

    def _features(self, weight: Tensor, bias: Tensor) -> Tensor:
        """What stands for the features of each class, (U, K, features)."""
        pull = self.shrinkage**2 * bias.square().mean(1)[:, None, None]
        own, length = weight * bias[..., None], bias.square()[..., None]
        together = own.sum(1, keepdim=True) / length.sum(1, keepdim=True)
        features = (own + pull * together) / (length + pull) if self.shrinkage else weight / bias[..., None]
        return features.nan_to_num(nan=0.0).clamp(-LARGEST, LARGEST)


def whole(counts: Tensor, size: int) -> Tensor:
    """The whole numbers of at least 0 that sum to `size` and are nearest to `counts` (U, K), int64.

    They are rounded first; then, while the sum is wrong, the one that was rounded up the most goes down by one, or the
    one that was rounded down the most goes up, which is optimal because the error of each is convex.
    """
    wanted = counts.clamp(0, size)
    found = wanted.round()
    while (excess := found.sum(1, keepdim=True) - size).any():
        error = found - wanted
        too_high = torch.where(found > 0, error, -torch.inf).argmax(1, keepdim=True)
        which = torch.where(excess > 0, too_high, error.argmin(1, keepdim=True))
        found = found.scatter_add(1, which, -excess.sign())
    return found.long()
