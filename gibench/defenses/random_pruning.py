"""Random ("soft") pruning, alone or with noise (Balunović et al., ICLR 2022)."""

from typing import Literal

from gibench.defenses.base import Defense, Private, Release
from gibench.defenses.random_numbers import kept_like, laplace_like, normal_like
from gibench.errors import ConfigurationError
from gibench.likelihoods import Gaussian, Hypothesis, Laplace, Likelihood, Masked, Mixture
from gibench.types import Observation

_PREFIX = "mask:"


class RandomPruning(Defense):
    """g = M * g(x) + e, each entry of M kept with probability 1 - p; noise falls on pruned entries, too.

    p(g | x) = prod_j f(g_j - M_j g_j(x)) where the mask is known, and where it is not the mixture
    prod_j [(1 - p) f(g_j - g_j(x)) + p f(g_j)], with the noise's density f. Without noise the zeros tell the mask.

    The authors' code draws one mask for all images and hands it to the attacker; here each update has its own, and
    `threat_model.defense_randomness` says whether the attacker gets it (`mask:NAME` for each parameter). Kept entries
    are not rescaled by 1 / (1 - p), as there.

    Args:
        pruned: p, in [0, 1).
        noise: the law of e; None is no noise.
        scale: standard deviation of the Gaussian, b of the Laplace law; positive where there is noise.
    """

    def __init__(
        self, *, pruned: float, noise: Literal["gaussian", "laplace"] | None = None, scale: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= pruned < 1:
            raise ConfigurationError(f"pruned is {pruned}; prune a share in [0, 1).")
        if noise not in (None, "gaussian", "laplace") or not scale >= 0 or (scale > 0) != (noise is not None):
            raise ConfigurationError(
                f"noise is {noise!r}, scale {scale}; choose 'gaussian' or 'laplace' with a positive scale, or neither."
            )
        self.pruned = pruned
        self.noise: Literal["gaussian", "laplace"] | None = noise
        self.scale = scale

    def sample(self, private: Private) -> Release:
        """See `Defense`."""
        update = private.simulate(private.images, private.labels)
        kept = kept_like(update, private.seeds, pruned=self.pruned)
        released = {name: kept[name] * value for name, value in update.items()}
        if self.noise:
            noise = (normal_like if self.noise == "gaussian" else laplace_like)(update, private.seeds)
            released = {name: value + self.scale * noise[name] for name, value in released.items()}
        return Release(released, {f"{_PREFIX}{name}": value.bool() for name, value in kept.items()})

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`.

        A known mask leaves of the update what was kept, which is not zero but by a chance of measure zero.
        """
        if self.noise is None:
            return Hypothesis(Masked(distance), observation)
        if observation.randomness is None:
            mixture = Mixture(noise=self.noise, scale=self.scale, pruned=self.pruned)
            return Hypothesis(mixture, observation)
        kept = {name: value * observation.randomness[f"{_PREFIX}{name}"] for name, value in observation.update.items()}
        law = Gaussian(sigma=self.scale) if self.noise == "gaussian" else Laplace(scale=self.scale)
        return Hypothesis(Masked(law), observation.model_copy(update={"update": kept}))
