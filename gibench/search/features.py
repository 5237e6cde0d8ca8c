"""A generator's features as the searched variable."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.search.generated import Generated, Place, of_one_generator, reach
from gibench.search.generator import Generator
from gibench.search.l1_ball import project_to_l1_ball
from gibench.search.representation import Given, Representation
from gibench.types import Observation
from gibench.victims import Victim


class Features(Generated):
    r"""Search what enters stage i of a generator, in an l1-ball around where the search before ended (GIFD).

    .. math:: x = G_{i:}(f_0 + d), \qquad \lVert d \rVert_1 \le r

    for each image, d from 0 on. Later stages express more images and know less about them: the ball is what is left of
    the prior.

    Args:
        generator: the one whose latent, or earlier features, were searched before.
        stage: i, from 1 on; the features that it takes.
        radius: r; None leaves them free.
        resample: see `Generated`.

    Raises:
        ConfigurationError: there is no such stage.
    """

    def __init__(
        self, *, generator: Generator, stage: int, radius: float | None = None, resample: bool = False
    ) -> None:
        super().__init__(generator=generator, resample=resample)
        if not 1 <= stage < generator.depth:
            raise ConfigurationError(
                f"there is no stage {stage} with features before it; {type(generator).__name__} has 1 to "
                f"{generator.depth - 1}."
            )
        if radius is not None and not radius > 0:
            raise ConfigurationError(f"radius is {radius}; choose one above 0, or None for no ball.")
        self.stage = stage
        self.radius = radius

    def numbers(self, image_shape: Sequence[int]) -> int:
        """See `Representation`."""
        return self.generator.features_shape(self.stage).numel()

    def start(self, observation: Observation, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """Raise ConfigurationError: features have no start of their own."""
        raise ConfigurationError("features start where a latent ended; search a Latent of the generator first.")

    def place(self, variable: Tensor, given: Given) -> Place:
        """See `Generated`."""
        return Place(self.stage, (given.kept["center"] + variable).flatten(0, 1), self.classes(given, variable))

    def follow(
        self, before: Representation, variable: Tensor, victim: Victim, given: Given
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Representation`: no move, around what the images found have at this stage."""
        center = reach(of_one_generator(before, self), variable, given, self.stage)
        return torch.zeros_like(center), {"center": center}

    def project(self, variable: Tensor, victim: Victim) -> Tensor:
        """Return the nearest move in the ball."""
        if self.radius is None:
            return variable
        return project_to_l1_ball(variable.flatten(0, 1).flatten(1), self.radius).view_as(variable)
