"""What every search of a generator shares: its generator, its images, and where it stands in the chain of stages."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gibench.errors import ConfigurationError, WeightsError
from gibench.needs import Needs
from gibench.search.generator import Generator, resampling
from gibench.search.representation import NOTHING_GIVEN, Given, Representation
from gibench.types import Observation
from gibench.victims import Victim

COPIES = 6
"""Tensors of the size of a generator's activations at the peak of `decode` and its derivative."""


class Place(NamedTuple):
    """Where images stand in a generator: features (N, ...) that enter `stage`, and their classes (N, K) or None."""

    stage: int
    features: Tensor
    classes: Tensor | None


class Generated(Representation):
    """Images as a generator draws them.

    Args:
        generator: such as `generators.load_generator` reads one; its origin is what the threat model has to grant.
        resample: bring its images to the victim's size, by averaging down and linearly up; otherwise another size is
            refused.

    Raises:
        ConfigurationError: on use, it draws other images than the victim takes, or of other classes.
        WeightsError: its weights hold NaN or infinity.
        ThreatModelError: on use, when the threat model does not grant the images that it was trained on.
    """

    encodes = False
    stage = 0
    """The first stage whose input, or weights, are searched."""

    def __init__(self, *, generator: Generator, resample: bool = False) -> None:
        super().__init__()
        if not all(bool(weight.isfinite().all()) for weight in generator.parameters()):
            raise WeightsError("the generator's weights hold NaN or infinity; load it again, or train it anew.")
        self.generator = generator.eval().requires_grad_(False)
        self.resample = resample
        origin = generator.origin
        # Who may learn from images of the same distribution may learn from others.
        self.needs = Needs() if origin is None else Needs(prior_data=tuple(sorted({"in_distribution", origin})))

    @abstractmethod
    def place(self, variable: Tensor, given: Given) -> Place:
        """Where the images of a variable (R, B, ...) stand, N = R B; for a search that goes on from there."""

    def decode(self, variable: Tensor, victim: Victim, given: Given = NOTHING_GIVEN) -> Tensor:
        """See `Representation`."""
        stage, features, classes = self.place(variable, given)
        return self.finish(self.generator(features, classes, first=stage), variable, victim)

    def finish(self, images: Tensor, variable: Tensor, victim: Victim) -> Tensor:
        """Bring images (N, C, h, w) to the victim's size and to (R, B, C, H, W)."""
        fitted = resampling(self.generator, victim.image_shape, resample=self.resample)(images)
        of_rows: Tensor = fitted.unflatten(0, variable.shape[:2])
        return of_rows

    def classes(self, given: Given, like: Tensor) -> Tensor | None:
        """The classes of N images as the generator takes them, (N, K); None where it takes none."""
        classes = self.generator.num_classes
        if classes is None:
            return None
        if given.labels is None:
            raise ConfigurationError("the generator draws images of a class, and nobody says which; give it labels.")
        labels = given.labels.flatten(0, 1)
        return labels.to(like) if labels.is_floating_point() else F.one_hot(labels, classes).to(like)

    def encode(self, images: Tensor, victim: Victim) -> Tensor:
        """See `Representation`."""
        raise ConfigurationError(f"{type(self).__name__} takes no warm start; leave the initial attack out.")

    def passing(self, image_shape: Sequence[int]) -> int:
        """See `Representation`: the generator's activations."""
        shapes = [self.generator.features_shape(stage) for stage in range(1, self.generator.depth + 1)]
        return 3 * COPIES * sum(shape.numel() for shape in shapes)  # a stage is about three operations

    def check(self, observation: Observation) -> None:
        """See `Representation`."""
        resampling(self.generator, observation.image_shape, resample=self.resample)
        # In place: the searches of one attack share the generator, and `check_follows` knows it by identity.
        self.generator.to(next(iter(observation.update.values())))
        if self.generator.num_classes not in (None, observation.num_classes):
            raise ConfigurationError(
                f"{type(self.generator).__name__} draws {self.generator.num_classes} classes, the victim knows "
                f"{observation.num_classes}; use another one."
            )

    def check_follows(self, before: Representation) -> None:
        """See `Representation`: it goes on from a search of the same generator, at an earlier stage."""
        if of_one_generator(before, self).stage > self.stage:
            raise ConfigurationError(
                f"{type(self).__name__} of stage {self.stage} cannot go on from {type(before).__name__} of stage "
                f"{of_one_generator(before, self).stage}; search the stages in order."
            )


def of_one_generator(before: Representation, after: Generated) -> Generated:
    """Return `before`, or raise ConfigurationError where it is no search of the same generator."""
    if not isinstance(before, Generated) or before.generator is not after.generator:
        raise ConfigurationError(
            f"{type(after).__name__} goes on from a search of the same generator, not from {type(before).__name__}; "
            "put a Latent of that generator before it."
        )
    return before


@torch.no_grad()
def reach(before: Generated, variable: Tensor, given: Given, stage: int) -> Tensor:
    """The features (R, B, ...) that enter `stage` for what a search of the same generator found."""
    place = before.place(variable, given)
    features: Tensor = before.generator(place.features, place.classes, first=place.stage, last=stage)
    of_rows: Tensor = features.unflatten(0, variable.shape[:2])
    return of_rows
