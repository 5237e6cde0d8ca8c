"""Mixtures of the images of a batch, which MixUp and InstaHide send the gradients of."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gibench.errors import ConfigurationError, ShapeError
from gibench.likelihoods import Hypothesis, Likelihood
from gibench.seeding import uniform_rows
from gibench.types import Observation, Simulate, Update
from gibench.victims import Victim

_OWN = 3  # concentration of the first weight; the others have 1
_DRAWS, _ROUNDS = 64, 100


class MixedSimulation:
    """A client's simulation of the mixtures of the images that it is given, with their labels mixed alike.

    Args:
        simulate: of the mixtures.
        classes: K.
        flipped: the victim in whose normalized units `signs` flip the mixtures; None where there are none.
    """

    def __init__(self, simulate: Simulate, *, classes: int, flipped: Victim | None = None) -> None:
        self.simulate = simulate
        self.classes = classes
        self.flipped = flipped

    def __call__(
        self, images: Tensor, labels: Tensor, *, weights: Tensor, partners: Tensor, signs: Tensor | None = None
    ) -> Update:
        """Return the updates; differentiable in images and in soft labels.

        Args:
            images: (U, B, C, H, W) in [0, 1].
            labels: (U, B), or class probabilities (U, B, K).
            weights: (U, B, k).
            partners: (U, B, k), places in the batch.
            signs: (U, B, C, H, W), 1 or -1.
        """
        targets = labels
        if labels.ndim == 2:  # `one_hot` reads values, which a traced evaluation cannot
            targets = (labels[..., None] == torch.arange(self.classes, device=labels.device)).to(images)
        encoded = mixed(images, weights, partners)
        if self.flipped is not None and signs is not None:
            encoded = self.flipped.denormalize(signs.to(images) * self.flipped.normalize(encoded))
        return self.simulate(encoded, mixed(targets, weights, partners))


def check_mixing(images: int, largest: float) -> None:
    """Raise ConfigurationError for mixtures that there are not."""
    if images < 2:
        raise ConfigurationError(f"images is {images}; mix 2 or more.")
    if not 1 / images < largest <= 1:
        raise ConfigurationError(
            f"largest is {largest}; {images} weights that sum to 1 allow a bound in ({1 / images:.3g}, 1]."
        )


def draw_mixing(batch: Tensor, seeds: Sequence[int], *, images: int, largest: float) -> dict[str, Tensor]:
    """Draw which images of a batch (U, B, C, H, W) are mixed, and how: one mixture for each image.

    The weights are Dirichlet(3, 1, ..., 1), drawn again until none is above `largest`; the first is the image's own.
    The others are different images of the same batch, each choice of them equally likely.

    Returns:
        weights: (U, B, k), summing to 1. partners: (U, B, k), int64, places in the batch.

    Raises:
        ShapeError: the batch has fewer than k images.
        ConfigurationError: the bound is so tight that it takes too many draws.
    """
    size = batch.shape[1]
    if size < images:
        raise ShapeError(
            f"{images} different images of a batch are mixed and it has {size}; B must be >= {images} (or, with fewer "
            "`images`, at least 2)."
        )
    weights = _draw_weights(size, seeds, images, largest).to(batch)
    order = uniform_rows((size, size), seeds, "partners")
    order.diagonal(dim1=1, dim2=2).fill_(-1.0)  # the image itself comes first
    return {"weights": weights, "partners": order.argsort(2)[:, :, :images].to(batch.device)}


def assume_mixing(observation: Observation, distance: Likelihood, *, flipped: Victim | None = None) -> Hypothesis:
    """Return what is compared: mixtures of the images where the draw is known, else images as if they were mixtures.

    Args:
        observation: with the draw in its `randomness`, where it is known.
        distance: what stands for the Dirac.
        flipped: see `MixedSimulation`.
    """
    if observation.randomness is None:
        return Hypothesis(distance, observation)
    simulate = MixedSimulation(observation.simulate, classes=observation.num_classes, flipped=flipped)
    return Hypothesis(distance, observation.model_copy(update={"simulate": simulate}), observation.randomness)


def mixed(values: Tensor, weights: Tensor, partners: Tensor) -> Tensor:
    """Return sum_j weights_bj values[partners_bj] for (U, B, *shape); elementwise, so that no autocast rounds it."""
    update = torch.arange(len(values), device=values.device)[:, None]
    weights = weights.to(values).reshape(*weights.shape, *[1] * (values.ndim - 2))
    terms = [weights[:, :, place] * values[update, partners[:, :, place]] for place in range(partners.shape[2])]
    return torch.stack(terms).sum(0)


def _draw_weights(size: int, seeds: Sequence[int], images: int, largest: float) -> Tensor:
    weights = torch.zeros(len(seeds), size, images, dtype=torch.float64)
    missing = torch.ones(len(seeds), size, dtype=torch.bool)
    for number in range(_ROUNDS):
        uniform = uniform_rows((_DRAWS, size, images + _OWN - 1), seeds, "weights", number)
        exponential = -torch.log1p(-uniform)
        gamma = torch.cat([exponential[..., :_OWN].sum(-1, keepdim=True), exponential[..., _OWN:]], -1)
        draws = gamma / gamma.sum(-1, keepdim=True)
        fitting = draws.amax(-1) <= largest
        first = fitting.int().argmax(1)[:, None, :, None]
        chosen = draws.take_along_dim(first, 1)[:, 0]
        weights = torch.where((missing & fitting.any(1))[..., None], chosen, weights)
        missing &= ~fitting.any(1)
        if not missing.any():
            return weights
    raise ConfigurationError(
        f"in {_DRAWS * _ROUNDS} draws no {images} weights were all at most {largest}; raise `largest`."
    )
