"""PRECODE without its noise: an attacker reads the code off the gradient, and needs not search what was drawn."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.defenses.precode import Precode, PrecodeUpdate
from gibench.errors import BackendError, ThreatModelError
from gibench.likelihoods import Gaussian, Hypothesis, Likelihood
from gibench.needs import Needs
from gibench.types import Observation, Update
from gibench.victims import find_bottleneck


class CodeFromGradient(Likelihood):
    r"""-log p(g | x, b) of `Precode` for one image, with the code b of its bottleneck read off the gradient g.

    The decoder is a linear layer W_d b + c_d, whose gradient for B = 1 is dW_d = dc_d b^T. That is solved by

    .. math:: b = dW_d^T dc_d / |dc_d|^2, \quad \epsilon(x) = (b - \mu(x)) / \sigma(x)

    with sigma = softplus(s), exactly for b, as the bias attack (Phong et al. 2017) reads the image off a first layer.
    With eps(x) each image x is judged at the very code that the client drew, so nothing of the noise is searched
    (`GradientMatching.hidden` has no effect), and no noise that the threat model hands over is read. How likely eps(x)
    is under N(0, I) does not count: the gradient is free of noise and decides alone.

    Where the decoder's gradient is zero, as at a loss of zero, the code is taken for 0: finite, not the client's.

    Args:
        distance: what stands for the Dirac; None is `Gaussian()`.

    Raises:
        ThreatModelError: on binding, when the client's defense is not `Precode`, or B is not 1.
    """

    needs = Needs(defense=("known",), batch_size=("known",))

    def __init__(self, *, distance: Likelihood | None = None) -> None:
        super().__init__()
        self.distance = distance or Gaussian()

    def hypothesis(self, observation: Observation) -> Hypothesis:
        """See `Likelihood`."""
        defense, size, found = observation.defense, observation.known_batch_size(), find_bottleneck(observation.victim)
        if not isinstance(defense, Precode) or found is None:
            raise ThreatModelError(
                f"the code is that of PRECODE's bottleneck, the client's defense is {defense or 'none'}; use "
                "gibench.defenses.Density."
            )
        if size != 1:
            raise ThreatModelError(
                f"a gradient of {size} images holds combinations of their codes, none alone; set the batch size to 1, "
                "or use gibench.defenses.Density, which searches the noise."
            )
        name, bottleneck = found
        weight, bias = (observation.update[f"{name}.decoder.{part}"] for part in ("weight", "bias"))
        simulate = _UpdateAtCode(observation.victim, bottleneck.statistics, beta=defense.beta)
        known = {"code": layer_input(weight, bias)[:, None]}
        distance = self.distance.as_distance(observation)
        return Hypothesis(distance, observation.model_copy(update={"simulate": simulate}), known=known)

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`; there is none before it is bound to an observation."""
        raise BackendError("the code is read when bound to an observation; use it in GradientMatching.")


def layer_input(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the input (U, d) of a linear layer for one image, by the gradients of weight (U, n, d) and bias (U, n).

    The least-squares solution of weight = bias input^T over all rows; 0 where both are zero.
    """
    # In units of the largest entry, since the square of a confident victim's gradient underflows.
    scale = bias.abs().amax(1, keepdim=True)
    scale = scale.where(scale > 0, 1)
    weight, bias = weight / scale[..., None], bias / scale
    squares = bias.square().sum(1, keepdim=True)  # at least 1, or 0
    return torch.einsum("uij,ui->uj", weight, bias) / squares.clamp(min=1)


class _UpdateAtCode:
    """images (U, 1, C, H, W), labels (U, 1) or (U, 1, K), code (U, 1, size) -> gradients of PRECODE's loss, per update.

    Differentiable in images, soft labels and code. The noise eps(x) is a constant of the gradient, but a function of x.

    Args:
        victim: with a bottleneck.
        statistics: the bottleneck's layer of mu and s.
        beta: weight of the divergence, in bits.
    """

    def __init__(self, victim: nn.Module, statistics: nn.Module, *, beta: float) -> None:
        self.victim = victim
        self.statistics = statistics
        self.update = PrecodeUpdate(victim, beta=beta)

    def __call__(self, images: Tensor, labels: Tensor, code: Tensor) -> Update:
        """Return the updates, per parameter (U, *shape)."""
        mean, spread = self._statistics(images).chunk(2, -1)
        # Narrower distributions (s < -43 in single precision) overflow; PRECODE's own code is then mu, to all digits.
        deviation = F.softplus(spread).clamp(min=torch.finfo(spread.dtype).tiny ** 0.5)
        return self.update(images, labels, (code - mean) / deviation)

    def _statistics(self, images: Tensor) -> Tensor:
        """Return mu and s of all images, (U, 1, 2 * size); no layer mixes images, see `Precode.check`."""
        seen: list[Tensor] = []
        handle = self.statistics.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
        try:
            self.victim(images.flatten(0, 1))
        finally:
            handle.remove()
        statistics: Tensor = seen[0].unflatten(0, images.shape[:2])
        return statistics
