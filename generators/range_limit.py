"""The range limit: how close a generator comes to an image when nothing but its own range holds it back."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gibench.errors import ConfigurationError, NonFiniteError
from gibench.metrics.limits import Limit
from gibench.search.generator import Generator, resampling
from gibench.search.l1_ball import project_to_l1_ball
from gibench.search.schedules import rate_factor
from gibench.seeding import derive, normal_rows
from gibench.types import check_images
from gibench.victims.weights import weights_sha256


class RangeLimit(Limit):
    """The best projection of images on the range of a generator, with no update at all.

        min over z of mean((G(z) - x)^2),

    by Adam with a cosine decay of its rate to 0, from several latents z ~ N(0, 1); of all iterates of all restarts the
    one with the smallest error is the answer. With `radii` GIFD's range is searched on from each restart's best
    (Fang et al., ICCV 2023): for i = 1, 2, .. the features that stage i takes, in the l1 ball of radius `radii[i - 1]`
    around what stages 0 to i - 1 make of the best before. The answer never gets worse by that.

    The searches are not convex, so the PSNR of the answer is a lower bound of the true limit; more restarts and steps
    raise it. Restart r of each image starts at the same latent, so that an answer depends on its image and the
    settings alone, up to the rounding of larger batches.

    Args:
        generator: used in evaluation mode; moved to the device of the images.
        steps: of Adam, for each restart, in the latent and again in each stage's features.
        rate: of Adam at the start, in the units of the latent.
        feature_rate: of Adam at the start, in the units of the features.
        restarts: latents to start from, at least 1, or 0 with an encoder.
        radii: of the l1 balls (sum of absolute values over one image's features), for stages 1, 2, ..; at most
            depth - 1 of them. Empty: only the latent is searched.
        resample: bring images of another size than the victim's to its size: pixels are averaged by area where the
            generator's are larger, and interpolated bilinearly where they are smaller.
        encoder: images (N, C, H, W) of the generator's size -> latents (N, *latent_shape), where one search more starts
            than there are `restarts`; with the pretrained decoder of an autoencoder noise alone is a poor start.
        together: images times restarts that are searched at once; bounds the memory.
        seed: of the latents.

    Raises:
        ConfigurationError: a setting is out of its bounds, or there is no stage for a radius. On use: the generator
            draws images of another shape and `resample` does not help, or the labels name a class that it has not.
        NonFiniteError: on use, the generator's images are NaN or infinite in every restart.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        steps: int = 500,
        rate: float = 0.1,
        feature_rate: float = 0.01,
        restarts: int = 4,
        radii: Sequence[float] = (),
        resample: bool = False,
        encoder: nn.Module | None = None,
        together: int = 256,
        seed: int = 0,
    ) -> None:
        if (
            min(steps, restarts + (encoder is not None), together) < 1
            or restarts < 0
            or not (0 < rate < math.inf and 0 < feature_rate < math.inf)
        ):
            raise ConfigurationError(
                f"steps is {steps}, restarts {restarts}, together {together}, rate {rate}, feature_rate {feature_rate};"
                " choose at least 1 of the first three and finite rates above 0."
            )
        if len(radii) >= generator.depth or not all(radius >= 0 for radius in radii):
            raise ConfigurationError(
                f"radii is {list(radii)}; {type(generator).__name__} has features before its stages 1 to "
                f"{generator.depth - 1}: pass at most {generator.depth - 1} radii, none below 0."
            )
        self.generator = generator.eval().requires_grad_(False)
        self.encoder = None if encoder is None else encoder.eval().requires_grad_(False)
        self.steps, self.restarts, self.together = steps, restarts, together
        self._starts = restarts + (encoder is not None)
        self.rate, self.feature_rate, self.radii = rate, feature_rate, tuple(radii)
        self.resample, self.seed = resample, seed

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `Limit`; labels may be left out for a generator that takes no classes."""
        check_images(images)
        fit = resampling(self.generator, tuple(images.shape[2:]), resample=self.resample)
        self.generator.to(images.device)
        if self.encoder is not None:
            self.encoder.to(images.device)
        classes = _classes(self.generator, labels, images)
        targets = images.flatten(0, 1).to(next(self.generator.parameters()).dtype)
        rows = torch.arange(len(targets) * self._starts, device=images.device)
        found, costs = [], []
        with torch.autocast(images.device.type, enabled=False):
            for part in rows.split(self.together):
                own = part // self._starts
                conditions = None if classes is None else classes[own]
                best, cost = self._search(targets[own], part % self._starts, conditions, fit)
                found.append(best)
                costs.append(cost)
        cost = torch.cat(costs).view(-1, self._starts)
        if not bool(cost.isfinite().any(1).all()):
            raise NonFiniteError("the generator draws NaN or infinity in every restart; lower the rate of the limit.")
        chosen = cost.argmin(1) + torch.arange(len(targets), device=cost.device) * self._starts
        return torch.cat(found)[chosen].clamp(0, 1).to(images.dtype).view(images.shape)

    def check(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        """See `Limit`."""
        resampling(self.generator, image_shape, resample=self.resample)
        if self.generator.num_classes is not None and self.generator.num_classes < num_classes:
            raise ConfigurationError(
                f"{type(self.generator).__name__} has {self.generator.num_classes} classes, the victim {num_classes}; "
                "take a generator of the victim's classes."
            )

    def fingerprint(self) -> dict[str, Any]:
        """See `Limit`."""
        return {
            "class": f"generators.{type(self).__name__}",
            "generator": type(self.generator).__name__,
            "weights_sha256": weights_sha256(self.generator),
            "encoder_sha256": None if self.encoder is None else weights_sha256(self.encoder),
            "steps": self.steps,
            "rate": self.rate,
            "feature_rate": self.feature_rate,
            "restarts": self.restarts,
            "radii": list(self.radii),
            "resample": self.resample,
            "seed": self.seed,
        }

    def _search(
        self, targets: Tensor, restarts: Tensor, classes: Tensor | None, fit: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The best images (N, C, H, W) for `targets`, of one restart each, and their mean squared errors (N,)."""
        variable = self._first_latents(targets, restarts)
        for first, radius in enumerate((math.inf, *self.radii)):
            if first:
                with torch.no_grad():
                    variable = self.generator(variable, classes, first=first - 1, last=first)
            rate = self.feature_rate if first else self.rate

            def draw(features: Tensor, first: int = first) -> Tensor:
                return fit(self.generator(features, classes, first=first))

            variable, cost = _descend(variable, draw, targets, radius=radius, steps=self.steps, rate=rate)
        with torch.no_grad():
            return draw(variable), cost

    @torch.no_grad()
    def _first_latents(self, targets: Tensor, restarts: Tensor) -> Tensor:
        """Of one restart for each target: its own noise, or what the encoder makes of the target."""
        shape = self.generator.latent_shape
        seeds = [derive(self.seed, "restart", number) for number in range(self.restarts)]
        noise = normal_rows(shape, seeds, "latent") if seeds else torch.zeros(0, *shape, dtype=torch.float64)
        if self.encoder is None:
            return noise.to(targets)[restarts]
        encoded = restarts == self.restarts
        variable = targets.new_zeros(len(targets), *shape)
        variable[~encoded] = noise.to(targets)[restarts[~encoded]]
        if encoded.any():
            size = self.generator.image_shape[1:]
            seen = targets[encoded]
            seen = seen if seen.shape[2:] == size else F.interpolate(seen, size=size, mode="bilinear")
            variable[encoded] = self.encoder(seen).to(targets)
        return variable


def _descend(
    start: Tensor, draw: Callable[[Tensor], Tensor], targets: Tensor, *, radius: float, steps: int, rate: float
) -> tuple[Tensor, Tensor]:
    """The best iterate of each row from `start` on, at most `radius` (l1) away from it, and its cost (N,)."""
    variable = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=rate)
    best, least = start, torch.full((len(start),), math.inf, device=start.device, dtype=start.dtype)
    for step in range(steps + 1):
        with torch.enable_grad():
            costs = (draw(variable) - targets).square().flatten(1).mean(1)
        better = costs.detach() < least  # never so for NaN
        best = torch.where(better.view(-1, *[1] * (start.ndim - 1)), variable.detach(), best)
        least = torch.where(better, costs.detach(), least)
        if step < steps:
            (variable.grad,) = torch.autograd.grad(costs.sum(), variable)
            optimizer.param_groups[0]["lr"] = rate * rate_factor("cosine", step, steps)
            optimizer.step()
            if radius < math.inf:
                with torch.no_grad():
                    variable.copy_(start + project_to_l1_ball((variable - start).flatten(1), radius).view_as(variable))
    return best, least


def _classes(generator: Generator, labels: Tensor | None, images: Tensor) -> Tensor | None:
    """The true classes as probabilities (U * B, K), for a class-conditional generator."""
    if generator.num_classes is None:
        return None
    if labels is None or labels.shape != images.shape[:2]:
        raise ConfigurationError(f"{type(generator).__name__} takes classes; pass the labels of the images, (U, B).")
    if int(labels.min()) < 0 or int(labels.max()) >= generator.num_classes:
        raise ConfigurationError(
            f"{type(generator).__name__} has {generator.num_classes} classes, the labels name {int(labels.max())}; "
            "take a generator of the images' classes."
        )
    like = next(generator.parameters())
    return F.one_hot(labels.flatten(), generator.num_classes).to(images.device, like.dtype)
