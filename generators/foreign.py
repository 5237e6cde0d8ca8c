"""A network of another package as a generator."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gibench.errors import ConfigurationError
from gibench.search.generator import Generator

Output = Literal["tanh", "unit"]
_CLOSE = 1e-4


class Foreign(Generator):
    """Wraps a module that draws images from latents; of a chain of submodules each link is a stage.

    It is tried at once on two latents, so that what does not fit shows before any search. A module whose forward is
    more than a chain, such as BigGAN, where each block gets its own part of the latent, or StyleGAN2, where each gets
    a style and a picture so far, has one stage, its forward; to search its features, write a module of your own whose
    links pass all of that on in one tensor, and name that.

    Args:
        network: latents (N, *latent_shape) -> images (N, C, H, W); with `num_classes` it is called with class
            probabilities (N, K) as its second argument. In evaluation mode.
        latent_shape: of one latent.
        image_shape: (C, H, W).
        stages: names of submodules, such as "blocks.0", in the order in which forward calls them; together they must
            draw what it draws. Empty: forward is the one stage.
        conditioned: of `stages`, those that are called with the class probabilities as their second argument.
        output: "tanh", images in [-1, 1], moved to [0, 1]; or "unit", images in [0, 1].
        num_classes: K of a class-conditional generator.

    Raises:
        ConfigurationError: there is no such submodule, the images are of another shape or range or not finite, or the
            stages do not draw what forward draws.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        latent_shape: Sequence[int],
        image_shape: Sequence[int],
        stages: Sequence[str] = (),
        conditioned: Sequence[str] = (),
        output: Output = "tanh",
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if output not in get_args(Output):
            raise ConfigurationError(f"output is {output!r}; choose one of {', '.join(get_args(Output))}.")
        if len(image_shape) != 3 or not latent_shape or min(*image_shape, *latent_shape) < 1:
            raise ConfigurationError(
                f"latents are {tuple(latent_shape)} and images {tuple(image_shape)}; pass the shape of one latent, and "
                "(C, H, W)."
            )
        names = {name for name, _ in network.named_modules()} - {""}
        if odd := [name for name in stages if name not in names]:
            raise ConfigurationError(
                f"{type(network).__name__} has no submodule {odd[0]!r}; it has {', '.join(sorted(names)[:8])}."
            )
        if odd := [name for name in conditioned if name not in stages] or (
            list(conditioned) if num_classes is None else []
        ):
            raise ConfigurationError(f"{odd[0]!r} is conditioned; name it in stages, too, and set num_classes.")
        self.network = network
        self.stages, self.conditioned, self.output = tuple(stages), frozenset(conditioned), output
        channels, height, width = image_shape
        self.latent_shape, self.image_shape = tuple(latent_shape), (channels, height, width)
        self.num_classes = num_classes
        self._try()

    @property
    def depth(self) -> int:
        """One stage for each name, or one in all."""
        return max(1, len(self.stages))

    def stage(self, index: int, features: Tensor, classes: Tensor | None) -> Tensor:
        """See `Generator`."""
        if self.stages:
            name = self.stages[index]
            link = self.network.get_submodule(name)
            made: Tensor = link(features, classes) if name in self.conditioned else link(features)
        else:
            made = self._whole(features, classes)
        return self._pixels(made) if index == self.depth - 1 else made

    def _whole(self, latents: Tensor, classes: Tensor | None) -> Tensor:
        made: Tensor = self.network(latents) if self.num_classes is None else self.network(latents, classes)
        return made

    def _pixels(self, made: Tensor) -> Tensor:
        return (made + 1) / 2 if self.output == "tanh" else made

    @torch.no_grad()
    def _try(self) -> None:
        like = next(self.network.parameters(), torch.zeros(()))
        draws = torch.Generator().manual_seed(0)
        latents = torch.randn(2, *self.latent_shape, generator=draws).to(like)
        classes = None if self.num_classes is None else like.new_full((2, self.num_classes), 1 / self.num_classes)
        name = type(self.network).__name__
        try:
            images = self(latents, classes)
            whole = self._pixels(self._whole(latents, classes))
        except (TypeError, RuntimeError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigurationError(
                f"{name} does not draw from latents {self.latent_shape} ({reason}); correct latent_shape, num_classes "
                "and stages."
            ) from error
        for drawn in (whole, images):
            if not isinstance(drawn, Tensor) or drawn.shape[1:] != self.image_shape:
                raise ConfigurationError(f"{name} draws {_shape(drawn)}, not {self.image_shape}; correct image_shape.")
        if not torch.isfinite(whole).all() or whole.min() < -_CLOSE or whole.max() > 1 + _CLOSE:
            raise ConfigurationError(
                f"{name} draws values in [{float(whole.min()):.3g}, {float(whole.max()):.3g}] after output "
                f"{self.output!r}; they must be in [0, 1]: set output, or wrap it."
            )
        if not torch.allclose(images, whole, atol=_CLOSE):
            raise ConfigurationError(
                f"the stages {', '.join(self.stages)} do not draw what {name} draws; name all links of its chain in "
                "order, or none."
            )


def _shape(drawn: object) -> str:
    return str(tuple(drawn.shape[1:])) if isinstance(drawn, Tensor) else f"a {type(drawn).__name__}"
