"""PRECODE: a variational bottleneck in the victim, with noise of the client (Scheliga et al., WACV 2022)."""

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from gibench.defenses.base import Defense, Private, Release
from gibench.errors import ConfigurationError
from gibench.likelihoods import Hidden, Hypothesis, Likelihood
from gibench.seeding import normal_rows
from gibench.types import Observation, Update
from gibench.victims import VariationalBottleneck, Victim, divergence, find_bottleneck

_NOISE = "noise"


class Precode(Defense):
    """Send the gradient of a victim with a variational bottleneck at codes that are drawn for this update.

    g = grad_theta [l(x, y; e) + beta KL / ln 2] with e ~ N(0, I), (B, K) for each update, and the divergence KL of
    `gibench.victims.divergence`. Given x and e nothing is random. Where the threat model hands e over (as `noise`),
    p(g | x) is a Dirac; where it does not, it is the law of g(x, e), and `GradientMatching.hidden` says what an attack
    makes of that: the authors of the defense draw e anew for each evaluation, "Bayesian Framework for Gradient Leakage"
    (Balunović et al., ICLR 2022) searches it with the images. Layers before the bottleneck leak as they do without it.

    Args:
        beta: weight of the divergence in bits, at least 0; the authors' is 1e-3.
    """

    def __init__(self, *, beta: float = 1e-3) -> None:
        super().__init__()
        if not beta >= 0:
            raise ConfigurationError(f"beta is {beta}; a weight of the divergence is at least 0.")
        self.beta = beta

    def check(self, victim: Victim, update: str) -> None:
        """See `Defense`."""
        if update != "gradient":
            raise ConfigurationError("PRECODE is defined for one gradient, not for local steps; use FedSGD.")
        _bottleneck(victim)
        for name, layer in victim.named_modules():
            if isinstance(layer, nn.LayerNorm | _BatchNorm | _InstanceNorm):
                raise ConfigurationError(
                    f"PRECODE's update has wrong derivatives in PyTorch with {type(layer).__name__} ({name}); "
                    "choose a victim with GroupNorm or without normalization."
                )

    def sample(self, private: Private) -> Release:
        """See `Defense`."""
        _, bottleneck = _bottleneck(private.victim)
        shape = private.images.shape[1], bottleneck.noise.shape[1]
        noise = normal_rows(shape, private.seeds, "bottleneck").to(private.images)
        update = PrecodeUpdate(private.victim, beta=self.beta)(private.images, private.labels, noise)
        return Release(update, {_NOISE: noise})

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`."""
        _, bottleneck = _bottleneck(observation.victim)
        simulate = PrecodeUpdate(observation.victim, beta=self.beta)
        simulated = observation.model_copy(update={"simulate": simulate})
        if observation.randomness is not None:
            return Hypothesis(distance, simulated, known={_NOISE: observation.randomness[_NOISE]})
        return Hypothesis(distance, simulated, hidden=Hidden(_NOISE, (bottleneck.noise.shape[1],)))


class PrecodeUpdate:
    """images (U, B, C, H, W), labels (U, B) or (U, B, K), noise (U, B, K) -> gradients of PRECODE's loss, per update.

    Differentiable in images, soft labels and noise.

    Args:
        victim: with one bottleneck and no layer that normalizes over the batch, over positions or over features.
        beta: weight of the divergence, in bits.
    """

    def __init__(self, victim: nn.Module, *, beta: float) -> None:
        self.victim = victim
        self.beta = beta

    def __call__(self, images: Tensor, labels: Tensor, noise: Tensor) -> Update:
        """Return the updates, per parameter (U, *shape)."""
        parameters = dict(self.victim.named_parameters())
        gradient: Callable[..., Update] = vmap(grad(self._loss), in_dims=(None, 0, 0, 0))
        return gradient(parameters, images, labels, noise)

    def _loss(self, parameters: dict[str, Tensor], images: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        name, bottleneck = _bottleneck(self.victim)
        buffers = {**dict(self.victim.named_buffers()), f"{name}.noise": noise}
        seen: list[Tensor] = []
        handle = bottleneck.statistics.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
        try:
            logits = functional_call(self.victim, (parameters, buffers), (images,))
        finally:
            handle.remove()
        return F.cross_entropy(logits, labels) + self.beta / math.log(2) * divergence(seen[0])


def _bottleneck(victim: nn.Module) -> tuple[str, VariationalBottleneck]:
    found = find_bottleneck(victim)
    if found is None:
        raise ConfigurationError(
            "the victim has no variational bottleneck, which PRECODE needs; use gibench.victims.precode_mlp or "
            "precode_lenet, or build one with gibench.victims.VariationalBottleneck."
        )
    return found
