"""Feature matching: what the last layer has seen is read off its update (from the code of breaching, in no paper)."""

import math

import torch
from torch import Tensor, nn

from gibench.errors import ConfigurationError, RefusalError
from gibench.likelihoods.base import Hypothesis, Likelihood
from gibench.types import Observation, Update

LEAST = 1e-6  # of the observed bias gradient: below, the guess's is taken for this much


class Features(Likelihood):
    """D(g(x), g) + weight * mean (r_c(x) - r_c)^2 with r_c = dW_c / db_c, over features and over present classes c.

    W (K, d) and b are those of the last linear layer, whose input h is a vector of features. With delta_nc = p_nc -
    1[c = y_n], dW_c = sum_n delta_nc h_n and db_c = sum_n delta_nc: their ratio r_c is a weighted mean of the features.
    For B = 1 it is h itself, whatever c is, and the term is the one of breaching's `modern` and `legacy` attacks: the
    mean square of h(x) - dW_y/db_y. For B > 1, breaching compares each image's own features with the ratio of its
    label, which differ even at the truth; here the ratios of both updates are compared, which agree there.

    Present are the classes whose observed bias gradient is negative: with cross-entropy and one-hot labels no other
    class can have a negative one. It so needs no labels, reads the update alone, and adds nothing where no class is
    found. A guess whose db_c is positive or next to nothing has no such mean; its db_c is taken for 1e-6 of the
    observed one. A defense that perturbs db perturbs the ratio more; noise makes its tails heavy.

    Args:
        distance: D, a plain distance.
        weight: at least 0; 0.1 in breaching.

    Raises:
        ConfigurationError: for a negative weight.
        RefusalError: on binding, when the victim's last linear layer has no bias, or there is none.
    """

    def __init__(self, distance: Likelihood, *, weight: float = 0.1) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ConfigurationError(f"the weight of the features is {weight}; it must be at least 0.")
        self.distance = distance
        self.weight = weight
        self.needs = distance.needs

    def hypothesis(self, observation: Observation) -> Hypothesis:
        """See `Likelihood`."""
        linear = [name for name, layer in observation.victim.named_modules() if isinstance(layer, nn.Linear)]
        head = linear[-1] if linear else "none"
        if _head(observation.update) != (f"{head}.weight", f"{head}.bias"):
            raise RefusalError(
                "feature matching reads a last layer that is linear and has a bias; this victim has none: leave it out."
            )
        self.distance.as_distance(observation)
        return Hypothesis(self, observation)

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        gaps, present = self._gaps(simulated, observed)
        squares = gaps.square().mean(2).sum(1)
        distance: Tensor = self.distance(simulated, observed)
        return distance + self.weight * squares / present.sum(1).clamp_min(1)

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`: those of the distance, and those of the ratios under a further name, exactly."""
        weight, bias = _head(observed)
        gaps, present = self._gaps(simulated, observed)
        share = 2 * self.weight / (gaps.shape[2] * present.sum(1).clamp_min(1).to(gaps))  # int would give float32
        return self.distance.residuals(simulated, observed) | {f"{weight}/{bias}": share.sqrt()[:, None, None] * gaps}

    def compared(self, observed: Update) -> Update:
        """See `Likelihood`: what the distance looks at, and the last layer's weights for classes that are present."""
        masks = self.distance.compared(observed)
        if self.weight == 0:
            return masks
        weight, bias = _head(observed)
        rows = (observed[bias] < 0)[..., None].expand_as(observed[weight])
        return {**masks, weight: masks[weight] | rows if weight in masks else rows}

    def _gaps(self, simulated: Update, observed: Update) -> tuple[Tensor, Tensor]:
        """Differences of the ratios (U, K, d), 0 for classes that are not present; and which are, (U, K)."""
        weight, bias = _head(observed)
        present = observed[bias] < 0
        scale = torch.where(present, observed[bias], -1.0)  # a safe number where nothing is compared
        most = LEAST * scale
        own = torch.where(present, torch.minimum(simulated[bias], most), -1.0)
        gaps = simulated[weight] / own[..., None] - observed[weight] / scale[..., None]
        return torch.where(present[..., None], gaps, 0.0), present


def _head(update: Update) -> tuple[str, str]:
    """Names of weight and bias of the last layer, by the order of the parameters; empty where there are none such."""
    names = list(update)[-2:]
    if len(names) < 2 or [update[name].ndim for name in names] != [3, 2]:
        return "", ""
    return names[0], names[1]
