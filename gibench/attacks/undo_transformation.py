"""The adaptive attack on ATS: reconstruct the transformed image, then find and undo the transformation."""

import math
from functools import cache

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from gibench.attacks.base import Attack
from gibench.attacks.gradient_matching import GradientMatching
from gibench.defenses import ATS
from gibench.defenses.ats import Outcome
from gibench.defenses.transformations import Operation, apply, enhance
from gibench.errors import ConfigurationError, ThreatModelError
from gibench.types import Observation, Reconstruction

BRIGHTNESS = (0.47, 0.125)
"""Mean and deviation of the mean of an image's pixels, over CIFAR-10's prior split: a prior of two numbers."""

CONTRAST = (math.log(0.2), 0.28)
"""The same of the logarithm of their standard deviation."""

ROUNDS = 8
"""Of the iteration that undoes a change of sharpness; each halves the error at least."""

Steps = tuple[tuple[Operation, int], ...]
"""Operations with the signs of their magnitudes, in the order in which they are applied."""


class UndoTransformation(Attack):
    r"""Reconstruct y = tau(x), then answer with the x of the most probable tau, which an ATS policy has few of.

    For each outcome tau of the policy, x_tau is what tau most nearly makes the reconstruction of, and

    .. math:: \log p(\tau | y) = \log \pi(\tau) - |\tau(x_\tau) - y|^2 / 2 s^2 - n_\tau \log(s \sqrt{2 \pi})
        + \log p(x_\tau)

    up to a constant, n_tau being the number of values that are fill after tau: where they fit, the image need not
    explain them, while pixels have density 1 on [0, 1]. The prior p is normal in the mean of an image's pixels and
    log-normal in their standard deviation; the total variation in its place would be misled by noise. Where the
    randomness is known, tau is the one that was drawn.

    x_tau takes back one operation after the other, from the last. Translations, shears and rotations move back; what
    was lost gets the nearest known pixel, which decays towards the mean of the known ones with its distance.
    Brightness, contrast and color get the factor 1 / f, which is exact where nothing was clipped; a change of sharpness
    is inverted by iteration; inversion is its own inverse. Autocontrast, equalize, posterize and solarize, which lose
    what they change, are left as they are.

    Args:
        attack: reconstructs the transformed images; it is not told the randomness.
        noise: s, standard deviation of a value's error in a reconstruction; more than it is, because the errors of
            neighbors are alike.
        reach: distance, in sides of the image, over which the correlation of pixels falls to 1 / e.

    Raises:
        ThreatModelError: when the client's defense is not ATS, or not known.
    """

    def __init__(self, *, attack: GradientMatching, noise: float = 0.15, reach: float = 0.25) -> None:
        super().__init__()
        if noise <= 0 or reach <= 0:
            raise ConfigurationError(f"noise is {noise}, reach {reach}; both are positive.")
        self.attack = attack
        self.noise = noise
        self.reach = reach
        self.needs = attack.needs.also({"defense": ("known",)})
        self.differentiates = attack.differentiates
        self.engine = attack.engine

    def forward(self, observation: Observation) -> Reconstruction:
        """See `Attack`."""
        self.check(observation.threat_model)
        defense = observation.defense
        if not isinstance(defense, ATS):
            raise ThreatModelError(f"UndoTransformation undoes ATS, the client has {defense}; attack it directly.")
        found: Reconstruction = self.attack(observation.model_copy(update={"randomness": None}))
        candidates = found.candidates
        if candidates is not None:
            each = [self.undo(images, defense, observation.randomness) for images in candidates]
            candidates = torch.stack(each)
        images = self.undo(found.images, defense, observation.randomness)
        return found.model_copy(update={"images": images, "candidates": candidates})

    def undo(self, images: Tensor, defense: ATS, randomness: dict[str, Tensor] | None = None) -> Tensor:
        """Return the most probable originals of transformed images (U, B, C, H, W).

        Args:
            images: as they were reconstructed.
            defense: whose policy it is.
            randomness: what was drawn for them, where it is known.
        """
        best = images.new_full(images.shape[:2], -torch.inf)
        originals = images
        for outcome in defense.outcomes():
            undone, score = self._hypothetical(images, defense, outcome)
            if randomness is not None:
                drawn = defense.agrees(randomness, outcome).to(images.device)
                score = torch.where(drawn, 0.0, -torch.inf)
            better = score > best
            best = torch.where(better, score, best)
            originals = torch.where(better[..., None, None, None], undone, originals)
        return originals

    def _hypothetical(self, images: Tensor, defense: ATS, outcome: Outcome) -> tuple[Tensor, Tensor]:
        """x_tau (U, B, C, H, W) and log p(tau | y) (U, B)."""
        steps = tuple(defense.steps(outcome))
        height, width = images.shape[-2:]
        undone = images
        for operation, sign in reversed(steps):
            undone = self._invert(operation, sign, undone)
        again = undone
        for operation, sign in steps:
            again = apply(operation, again, sign)
        fill = images.shape[2] * (1 - _kept(steps, images.new_ones(1, height, width))).sum()
        score = (
            math.log(outcome.probability)
            - (again - images).square().flatten(2).sum(2) / (2 * self.noise**2)
            - fill * math.log(self.noise * math.sqrt(2 * math.pi))
            + log_prior(undone)
        )
        return undone, score

    def _invert(self, operation: Operation, sign: int, images: Tensor) -> Tensor:
        if operation.geometric:
            return self._move_back(operation, sign, images)
        factor = 1 + sign * operation.magnitude if operation.signed else 1.0
        if operation.kind in ("brightness", "contrast", "color"):
            return enhance(operation.kind, images, 1 / factor)
        if operation.kind == "sharpness":
            return _unsharpen(images, factor)
        return 1 - images if operation.kind == "invert" else images

    def _move_back(self, operation: Operation, sign: int, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        known, nearest, distance = _places(operation, sign, height, width)
        known, nearest, distance = (each.to(images.device) for each in (known, nearest, distance))
        back = apply(operation, images, -sign)
        mean = (back * known).sum((-2, -1), keepdim=True) / known.sum().clamp_min(1)
        weight = torch.exp(-distance.to(images) / (self.reach * max(height, width)))
        filled = back.flatten(-2)[..., nearest.flatten()].unflatten(-1, (height, width))
        return torch.where(known, back, mean + weight * (filled - mean))


def log_prior(images: Tensor) -> Tensor:
    """Score images (U, B, C, H, W) by log p(x), from their brightness and contrast, up to a constant: (U, B)."""
    pixels = images.flatten(2)
    brightness, contrast = pixels.mean(2), pixels.std(2).clamp_min(1e-6).log()
    standard = [
        (value - mean) / deviation for value, (mean, deviation) in ((brightness, BRIGHTNESS), (contrast, CONTRAST))
    ]
    return -0.5 * (standard[0].square() + standard[1].square())


def _unsharpen(images: Tensor, factor: float) -> Tensor:
    """Solve enhance("sharpness", x, factor) = images."""
    solved = images
    for _ in range(ROUNDS):
        solved = (solved + images - enhance("sharpness", solved, factor)).clamp(0, 1)
    return solved


@cache
def _places(operation: Operation, sign: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which places of the image moved back are known, and for each place the nearest known one and its distance.

    All (H, W): bool, int64 flat index, float64 pixels.
    """
    there_and_back = ((operation, sign), (operation, -sign))
    known = (_kept(there_and_back, torch.ones(1, height, width)) > 0.5)[0]
    distance, nearest = distance_transform_edt(~known.numpy(), return_indices=True)
    return known, torch.from_numpy(nearest[0] * width + nearest[1]).long(), torch.from_numpy(np.asarray(distance))


def _kept(steps: Steps, original: Tensor) -> Tensor:
    """What becomes of a mask (1, H, W): 1 where a pixel comes from a place where the mask is 1, 0 where it is fill."""
    kept = original
    for operation, sign in steps:
        if operation.geometric:  # the fill, black or gray, is what becomes of nothing, too
            kept = apply(operation, kept, sign) - apply(operation, torch.zeros_like(kept), sign)
    return kept
