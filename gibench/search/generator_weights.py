"""A generator's weights as the searched variable."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from gibench.errors import ConfigurationError
from gibench.search.generated import Generated, Place, of_one_generator, reach
from gibench.search.generator import Generator
from gibench.search.representation import NOTHING_GIVEN, Given, Representation
from gibench.types import Observation
from gibench.victims import Victim


class GeneratorWeights(Generated):
    r"""Search the weights of a generator, for each image its own, at the latent or features found before (GIAS).

    .. math:: x = G_{w + d}(z)

    d from 0 on. With enough steps G_w fits any image: what is left of the prior is that w is near where it was trained
    to be, which few steps of a small rate see to. No generator is copied; on an accelerator all images are drawn at
    once, as one batched operation for each layer.

    Args:
        generator: the one whose latent, or features, were searched before.
        stage: whose features are held fixed, with the weights from there on searched; 0 is the latent.
        resample: see `Generated`.
    """

    def __init__(self, *, generator: Generator, stage: int = 0, resample: bool = False) -> None:
        super().__init__(generator=generator, resample=resample)
        if not 0 <= stage < generator.depth:
            raise ConfigurationError(
                f"there is no stage {stage}; {type(generator).__name__} has 0 to {generator.depth - 1}."
            )
        self.stage = stage
        self._shapes = {name: value.shape for name, value in generator.named_parameters()}

    def numbers(self, image_shape: Sequence[int]) -> int:
        """See `Representation`."""
        return sum(shape.numel() for shape in self._shapes.values())

    def passing(self, image_shape: Sequence[int]) -> int:
        """See `Representation`: the weights that are drawn with and their derivative, too."""
        return super().passing(image_shape) + 3 * self.numbers(image_shape)

    def start(self, observation: Observation, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """Raise ConfigurationError: weights have no start of their own."""
        raise ConfigurationError("weights are searched at a latent found before; search a Latent first.")

    def place(self, variable: Tensor, given: Given) -> Place:
        """Raise ConfigurationError: a generator with other weights is another generator."""
        raise ConfigurationError("nothing goes on from searched weights; make them the last search.")

    def decode(self, variable: Tensor, victim: Victim, given: Given = NOTHING_GIVEN) -> Tensor:
        """See `Representation`."""
        features = given.kept["features"].flatten(0, 1)
        classes = self.classes(given, variable)
        names = dict(self.generator.named_parameters())

        def draw(move: Tensor, features: Tensor, classes: Tensor | None) -> Tensor:
            parts = move.split([shape.numel() for shape in self._shapes.values()])
            weights = {
                name: names[name] + part.view(shape)
                for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
            }
            rows = None if classes is None else classes[None]
            images: Tensor = functional_call(self.generator, weights, (features[None], rows), {"first": self.stage})[0]
            return images

        moves = variable.flatten(0, 1)
        if moves.device.type == "cpu":
            # Each layer as one grouped convolution takes a CPU two to three times as long as the images in turn.
            of = [None] * len(moves) if classes is None else list(classes)
            images = torch.stack([draw(*each) for each in zip(moves, features, of, strict=True)])
        else:
            images = vmap(draw, in_dims=(0, 0, None if classes is None else 0))(moves, features, classes)
        return self.finish(images, variable, victim)

    def follow(
        self, before: Representation, variable: Tensor, victim: Victim, given: Given
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Representation`: no move, at the latent or the features found."""
        features = reach(of_one_generator(before, self), variable, given, self.stage)
        return features.new_zeros(*features.shape[:2], self.numbers(())), {"features": features}
