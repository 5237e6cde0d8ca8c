"""Principal components as the searched variable: images that other images can be combined to."""

from collections.abc import Sequence
from typing import Literal, get_args

from lightning import LightningDataModule
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.priors.principal_components import AUXILIARY, PrincipalAxes
from gibench.search.representation import NOTHING_GIVEN, Given, Representation
from gibench.seeding import normal_rows
from gibench.types import Observation
from gibench.victims import Victim

CoefficientStart = Literal["zeros", "normal"]


class PrincipalComponents(Representation):
    r"""Search the coefficients of each image in the first K principal components of other images.

    .. math:: x = m + \sum_{k \le K} c_k \sqrt{\lambda_k} \, e_k

    with the mean m, the directions e_k and the variances lambda_k of the attacker's own images (see `PrincipalAxes`),
    so that a coefficient is N(0, 1) over them. It is a linear generator: K unknowns for an image in the place of
    C H W, a prior that costs nothing, and no image outside its span. How near its span comes to an image is a limit
    that no search passes, and a search of the update stays somewhat above that error: what the span cannot express, it
    has to explain by what it can. Pixels may leave [0, 1] on the way; the answer is clamped.

    Args:
        auxiliary: the attacker's own data, of the victim's image shape: any data set of `gibench.data`, by class path.
            Its prior split is used (the train images of CIFAR-10), which shares no image with those that are attacked
            (rule R3).
        components: K.
        images: of the split that are used, at most; None uses all.
        start: "normal", coefficients N(0, 1), as random images are; "zeros", the mean image, for which images of equal
            label never part.

    Raises:
        ConfigurationError: when the data is no data set, or has other images than the victim, or too few.
        ThreatModelError: when the threat model grants no other images (`prior_data`).
    """

    needs = AUXILIARY

    def __init__(
        self,
        *,
        auxiliary: LightningDataModule,
        components: int = 300,
        images: int | None = 10_000,
        start: CoefficientStart = "normal",
    ) -> None:
        super().__init__()
        if start not in get_args(CoefficientStart):
            raise ConfigurationError(f"start is {start!r}; choose one of {', '.join(get_args(CoefficientStart))}.")
        self.axes = PrincipalAxes(auxiliary, components=components, images=images)
        self.start_kind = start

    def numbers(self, image_shape: Sequence[int]) -> int:
        """See `Representation`: K."""
        return self.axes.components

    def start(self, observation: Observation, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """See `Representation`: (R, B, K)."""
        shape = (observation.known_batch_size(), self.axes.components)
        if self.start_kind == "zeros":
            return victim.mean.new_zeros(len(seeds), *shape)
        return normal_rows(shape, seeds, "coefficients").to(victim.mean)

    def decode(self, variable: Tensor, victim: Victim, given: Given = NOTHING_GIVEN) -> Tensor:
        """See `Representation`."""
        mean, directions, deviations, _ = self.axes.like(variable)
        images = mean + (variable * deviations) @ directions
        return images.reshape(*variable.shape[:-1], *victim.image_shape)

    def encode(self, images: Tensor, victim: Victim) -> Tensor:
        """See `Representation`."""
        mean, directions, deviations, _ = self.axes.like(images)
        return (images.flatten(-3) - mean) @ directions.T / deviations

    def check(self, observation: Observation) -> None:
        """See `Representation`."""
        self.axes.check(observation)
