"""A generator's latent as the searched variable."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.search.generated import Generated, Place
from gibench.search.generator import Generator
from gibench.search.representation import Given
from gibench.seeding import normal_rows
from gibench.types import Observation
from gibench.victims import Victim

Norm = Literal["free", "kept"]


class Latent(Generated):
    r"""Search the latent z of each image of a generator G, from N(0, 1).

    .. math:: x = G(z), \qquad -\log p(z) = \tfrac{w}{2} \lVert z \rVert^2

    No image outside the range of G is an answer: how near that comes to an image is a limit that no search passes (see
    `generators.RangeLimit`). Latents N(0, 1) of many numbers have nearly one length, and images of much longer ones are
    none that G was trained to draw; so the length can be kept, or penalized.

    Args:
        generator: G.
        norm: "free", or "kept": after each step, z is scaled back to the length sqrt(Z) of a random one (GIFD scales it
            to its own first length, which is nearly that).
        weight: w, at least 0; 1 is Bayes' rule with `Gaussian(sigma=...)` at the noise's own sigma.
        resample: see `Generated`.
    """

    def __init__(
        self, *, generator: Generator, norm: Norm = "free", weight: float = 0.0, resample: bool = False
    ) -> None:
        super().__init__(generator=generator, resample=resample)
        if norm not in get_args(Norm):
            raise ConfigurationError(f"norm is {norm!r}; choose one of {', '.join(get_args(Norm))}.")
        if not weight >= 0:
            raise ConfigurationError(f"the weight of the latent's prior is {weight}; it must be at least 0.")
        self.norm = norm
        self.weight = weight
        self.penalized = weight > 0

    def numbers(self, image_shape: Sequence[int]) -> int:
        """See `Representation`: Z."""
        return math.prod(self.generator.latent_shape)

    def start(self, observation: Observation, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """See `Representation`: (R, B, *latent_shape)."""
        shape = (observation.known_batch_size(), *self.generator.latent_shape)
        return self.project(normal_rows(shape, seeds, "latent").to(victim.mean), victim)

    def place(self, variable: Tensor, given: Given) -> Place:
        """See `Generated`."""
        return Place(0, variable.flatten(0, 1), self.classes(given, variable))

    def penalty(self, variable: Tensor) -> Tensor | None:
        """See `Representation`."""
        return math.sqrt(self.weight) * variable.flatten(1) if self.penalized else None

    def project(self, variable: Tensor, victim: Victim) -> Tensor:
        """Return the variable at its length, or as it is."""
        if self.norm == "free":
            return variable
        flat = variable.flatten(2)
        kept: Tensor = (flat * (math.sqrt(flat.shape[2]) / flat.norm(dim=2, keepdim=True))).view_as(variable)
        return kept
