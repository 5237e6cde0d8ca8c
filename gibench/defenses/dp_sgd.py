"""DP-SGD: the gradient of each example is clipped, and noise is added to their sum (Abadi et al., CCS 2016)."""

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from gibench.defenses.base import Defense, Private, Release
from gibench.defenses.random_numbers import normal_like
from gibench.errors import ConfigurationError
from gibench.likelihoods import Gaussian, Hypothesis, Likelihood
from gibench.types import Observation, Simulate, Update
from gibench.victims import Victim

_HELD = 2**27
"""Numbers of per-example gradients that a client holds at once: half a GiB in single precision."""
_AT_ONCE = 64
"""Examples that a client differentiates at once, at most: small networks have larger activations than weights."""
_COPIES = 8
"""Tensors of the size of an example's gradient, alive at the peak of the attacker's simulation: the engine's count."""


class DPSGD(Defense):
    r"""Gradients of single examples, clipped to norm C, averaged with noise.

    .. math:: g = \frac{1}{B} \Big( \sum_n g_n \min(1, C / |g_n|) + z C e \Big), \quad e \sim N(0, I)

    The norm is that of the gradient of all parameters together. p(g | x) is N(g; mean of the clipped gradients,
    (z C / B)^2 I), so that an attacker who knows the defense clips the gradients of its own images, too.

    Epsilon is that of (epsilon, delta)-differential privacy under adding or removing one example, after `steps` updates
    of batches that are Poisson samples of the data: Rényi accounting by Opacus. The benchmark's batches have a fixed
    size; epsilon is the figure that practice quotes for these settings, no claim on the single update.

    Args:
        clip: C, in the units of the gradient; positive.
        noise_multiplier: z, the standard deviation of the noise on the sum in units of C; 0 only clips.
        steps: updates that are sent in all. With `sample_rate` it gives `epsilon`, a setting like the others; without,
            epsilon is None.
        sample_rate: share of the data in a batch, in (0, 1].
        delta: in (0, 1).

    Raises:
        ConfigurationError: a setting is out of range, epsilon is asked for without noise, or Opacus is not installed.
    """

    def __init__(
        self,
        *,
        clip: float,
        noise_multiplier: float,
        steps: int | None = None,
        sample_rate: float | None = None,
        delta: float = 1e-5,
    ) -> None:
        super().__init__()
        if not clip > 0 or not noise_multiplier >= 0:
            raise ConfigurationError(
                f"DP-SGD needs clip > 0 and noise_multiplier >= 0; got {clip} and {noise_multiplier}."
            )
        if (steps is None) != (sample_rate is None):
            raise ConfigurationError("epsilon needs steps and sample_rate; set both, or neither.")
        self.clip = clip
        self.noise_multiplier = noise_multiplier
        self.steps = steps
        self.sample_rate = sample_rate
        self.delta = delta
        self.epsilon = (
            None if steps is None or sample_rate is None else epsilon(noise_multiplier, steps, sample_rate, delta)
        )

    def check(self, victim: Victim, update: str) -> None:
        """See `Defense`."""
        if update != "gradient":
            raise ConfigurationError("DP-SGD clips the gradients of examples, which FedAvg does not send; use FedSGD.")
        if any(isinstance(layer, _BatchNorm) for layer in victim.modules()):
            raise ConfigurationError(
                f"{victim.architecture} has BatchNorm layers, which mix the examples of a batch, so that none has "
                "its own gradient; choose a victim with GroupNorm or without normalization."
            )

    def sample(self, private: Private) -> Release:
        """See `Defense`."""
        clipped, size = ClippedGradient(private.simulate, clip=self.clip), private.images.shape[1]
        count = self._examples(private)
        mean: Update = {}
        for images, labels in zip(private.images.split(count, 1), private.labels.split(count, 1), strict=True):
            share = images.shape[1] / size
            for name, value in clipped(images, labels).items():
                mean[name] = mean[name] + share * value if name in mean else share * value
        noise, sigma = normal_like(mean, private.seeds), self._sigma(size)
        return Release({name: value + sigma * noise[name] for name, value in mean.items()}, {})

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`."""
        size = observation.known_batch_size()
        gradient = sum(value[0].nbytes for value in observation.update.values())
        changes = {
            "simulate": ClippedGradient(observation.simulate, clip=self.clip),
            "bytes_per_update": observation.bytes_per_update + _COPIES * (size - 1) * gradient,
        }
        likelihood = Gaussian(sigma=self._sigma(size)) if self.noise_multiplier else distance
        return Hypothesis(likelihood, observation.model_copy(update=changes))

    def _sigma(self, size: int) -> float:
        return self.noise_multiplier * self.clip / size

    @staticmethod
    def _examples(private: Private) -> int:
        """How many examples of each client are differentiated at once."""
        parameters = sum(parameter.numel() for parameter in private.victim.parameters())
        return max(1, min(_AT_ONCE, _HELD // parameters) // len(private.images))


class ClippedGradient:
    """images (U, B, C, H, W), labels (U, B) or (U, B, K) -> mean of the clipped gradients of the images, per update.

    Differentiable, through the norms too, which have no derivative at C and none to divide by at 0.

    Args:
        simulate: the gradient of a batch; here, of batches of one image each.
        clip: C.
    """

    def __init__(self, simulate: Simulate, *, clip: float) -> None:
        self.simulate = simulate
        self.clip = clip

    def __call__(self, images: Tensor, labels: Tensor) -> Update:
        """Return the updates, per parameter (U, *shape)."""
        rows = images.shape[:2]
        each = self.simulate(images.flatten(0, 1)[:, None], labels.flatten(0, 1)[:, None])
        squares = torch.stack([value.flatten(1).square().sum(1) for value in each.values()]).sum(0)
        factors = (self.clip * squares.clamp(min=self.clip**2).rsqrt()).unflatten(0, rows)  # min(1, C / norm)
        return {
            name: torch.einsum("ub,ub...->u...", factors, value.unflatten(0, rows)) / rows[1]
            for name, value in each.items()
        }


def epsilon(noise_multiplier: float, steps: int, sample_rate: float, delta: float) -> float:
    """Return the privacy that DP-SGD has spent, by Opacus' Rényi accountant.

    Args:
        noise_multiplier: z.
        steps: updates in all.
        sample_rate: share of the data in a batch, in (0, 1].
        delta: in (0, 1).

    Raises:
        ConfigurationError: a setting is out of range, there is no noise, or Opacus is not installed.
    """
    if not noise_multiplier > 0:
        raise ConfigurationError("without noise no epsilon is finite; set noise_multiplier, or leave out steps.")
    if steps < 1 or not 0 < sample_rate <= 1 or not 0 < delta < 1:
        raise ConfigurationError(
            f"epsilon needs steps >= 1, sample_rate in (0, 1] and delta in (0, 1); got {steps}, {sample_rate}, {delta}."
        )
    try:
        from opacus.accountants import RDPAccountant
    except ImportError as error:
        raise ConfigurationError(
            "epsilon is computed by Opacus, which is not installed; install gibench[privacy], or leave out steps."
        ) from error
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    return float(accountant.get_epsilon(delta))
