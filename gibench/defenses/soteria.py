"""Soteria: one linear layer's gradient without the columns of the features that tell most (Sun et al., CVPR 2021)."""

import math

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from gibench.defenses.base import Defense, Private, Release
from gibench.errors import ConfigurationError, ShapeError
from gibench.likelihoods import Hypothesis, Likelihood, Masked
from gibench.types import Observation
from gibench.victims import Victim

_BYTES = 2**28  # for the derivatives of the features that are computed together
_COPIES = 4  # of the largest activation, alive for each of these features


class Soteria(Defense):
    r"""Erase the columns f of one linear layer's weight gradient whose score lies below the p-quantile of all scores.

    .. math:: q_f = \sum_b \frac{\|\partial r_{bf} / \partial z_b\|_2}{|r_{bf}| + \mathrm{eps}}

    r (B, d) is the layer's input and z the normalized image, as in the authors' code: features that are large for how
    little they react to the image are erased. Biases and all other tensors are sent as they are. Given x nothing is
    random. The quantile is interpolated as in `np.percentile`, so without ties ceil(p (d - 1)) columns go; ties with it
    stay. The release is visible: erased columns are zero. What was kept is in the randomness as `kept`, (U, d).

    The authors divide by r + eps, which is the same after ReLU and sigmoid. A feature that does not react to the image
    scores 0 even where it is 0 and eps, too: the limit of small eps. One that reacts and is 0 there is never erased.
    With BatchNorm on the batch's own statistics the derivative is that of the batch's sum of r_f, as there.

    Args:
        pruned: p, in [0, 1). Published: 0.01 (the authors; 0.1 in other code), 0.6, and 0.7 and 0.8 (Balunović et al.,
            ICLR 2022).
        layer: dotted name of an `nn.Linear` in the victim, which takes (B, d) once per pass, such as "network.fc2".
            None is the last but one, as Balunović et al. chose for ConvBig (2000 to 1000), or the only one, as in
            LeNet. The authors always defend the last.
        eps: in the units of r: 0.1 in the authors' code for Inverting Gradients and in Balunović et al., 0 in the
            authors' for DLG, 1e-10 elsewhere.
    """

    def __init__(self, *, pruned: float, layer: str | None = None, eps: float = 0.1) -> None:
        super().__init__()
        if not 0 <= pruned < 1:
            raise ConfigurationError(f"pruned is {pruned}; prune a share in [0, 1).")
        if not eps >= 0:
            raise ConfigurationError(f"eps is {eps}; it is added to a magnitude, so at least 0.")
        self.pruned = pruned
        self.layer = layer
        self.eps = eps

    def check(self, victim: Victim, update: str) -> None:
        """See `Defense`."""
        if update != "gradient":
            raise ConfigurationError("Soteria prunes the columns of a gradient; send one, or choose another defense.")
        self._find(victim)

    def sample(self, private: Private) -> Release:
        """See `Defense`."""
        name, layer = self._find(private.victim)
        update = private.simulate(private.images, private.labels)
        kept = torch.stack([self._kept(private.victim, layer, batch) for batch in private.images])
        weight = f"{name}.weight"
        return Release({**update, weight: update[weight] * kept[:, None]}, {"kept": kept})

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`; the mask is read off the zeros, and zeros of other causes are left out with them.

        Which columns are erased depends on x, too, but as a step function of it, of which a search learns nothing.
        """
        if not self.pruned:
            return Hypothesis(distance, observation)
        name, _ = self._find(observation.victim)
        return Hypothesis(Masked(distance, tensors=[f"{name}.weight"]), observation)

    def _find(self, victim: nn.Module) -> tuple[str, nn.Linear]:
        """The defended layer and its name."""
        found = {name: module for name, module in victim.named_modules() if isinstance(module, nn.Linear)}
        if not found:
            raise ConfigurationError("Soteria defends an nn.Linear layer and the victim has none; choose another.")
        name = self.layer if self.layer is not None else list(found)[-2:][0]
        if name not in found:
            raise ConfigurationError(f"the victim has no nn.Linear {name!r}; name one of {', '.join(found)}.")
        return name, found[name]

    def _kept(self, victim: Victim, layer: nn.Linear, images: Tensor) -> Tensor:
        """Which features of one batch (B, C, H, W) keep their column, (d,)."""
        scores = feature_scores(victim, layer, images, eps=self.eps)
        place = math.ceil(self.pruned * (len(scores) - 1))  # the next score above the quantile: the same comparison
        return scores >= scores.kthvalue(place + 1).values


def feature_scores(victim: Victim, layer: nn.Linear, images: Tensor, *, eps: float) -> Tensor:
    """Return q_f of `Soteria` for one batch (B, C, H, W) in [0, 1], (d,)."""
    inputs = victim.normalize(images)
    features, pull_back = vjp(lambda inputs: layer_input(victim.network, layer, inputs), inputs)[:2]
    places = torch.arange(features.shape[1], device=features.device)

    def sensitivity(place: Tensor) -> Tensor:
        (derivative,) = pull_back((places == place).to(features).expand_as(features))
        norm: Tensor = torch.linalg.vector_norm(derivative.flatten(1), dim=1)
        return norm

    together = _BYTES // (_COPIES * _largest(victim.network, inputs) * features.element_size())
    norms: Tensor = vmap(sensitivity, chunk_size=max(1, together))(places)
    scores: Tensor = torch.where(norms > 0, norms / (features.T.abs() + eps), 0.0).sum(1)
    return scores


def layer_input(network: nn.Module, layer: nn.Linear, inputs: Tensor) -> Tensor:
    """Return what `layer` gets when the network gets `inputs` (B, C, H, W), (B, d).

    Raises:
        ShapeError: when it gets something else, or not exactly once.
    """
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _layer, arguments: found.append(arguments[0]))
    try:
        network(inputs)
    finally:
        handle.remove()
    if len(found) != 1 or found[0].ndim != 2:
        shapes = ", ".join(str(tuple(value.shape)) for value in found) or "nothing"
        raise ShapeError(f"Soteria needs a layer that gets (B, d) once; {layer} gets {shapes}: name another layer.")
    return found[0]


def _largest(network: nn.Module, inputs: Tensor) -> int:
    """How many numbers the largest output of a leaf module holds, or the input."""
    sizes = [inputs.numel()]

    def count(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(output.numel())

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)
