"""Pixels as the searched variable."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.search.representation import NOTHING_GIVEN, Given, Representation
from gibench.seeding import normal_rows, uniform_rows
from gibench.types import Observation
from gibench.victims import Victim

Start = Literal["normal", "uniform", "gray", "zeros", "pattern", "near_gray"]
TILE = 4  # pixels
NEAR = 0.01  # pixels


class Pixels(Representation):
    """Search the images themselves, in the units that the victim's network takes: v = (x - mean) / std.

    The published attacks start, step and decay in these units, so that their rates carry over; for a victim that does
    not normalize they are pixels. `decode` returns pixels in any case.

    Args:
        start: "normal", N(0, 1) in the victim's units (DLG, iDLG, IG), moved into the box where there is one (IG's code
            does that after the first step); "uniform", pixels U(0, 1); "gray", pixels 0.5; "zeros", 0 in the victim's
            units, its mean color (breaching's `legacy`; for a victim that does not normalize, black, on the edge of
            the box); "pattern", a tile of 4 x 4 in every channel, N(0, 1) in the victim's units, repeated over the
            image from its upper left corner on and cut off at its edges, then moved into the box (breaching's
            `patterned-4` and `patterned-4-randn`, which its code draws alike; after Wei et al., ESORICS 2020);
            "near_gray", pixels 0.5 + 0.01 N(0, 1), since images of equal label that all start gray stay equal: each
            gets the same derivative.
        box: keep pixels in [0, 1] after every step (IG), or let them roam (DLG, iDLG).
    """

    def __init__(self, *, start: Start = "normal", box: bool = True) -> None:
        super().__init__()
        if start not in get_args(Start):
            raise ConfigurationError(f"start is {start!r}; choose one of {', '.join(get_args(Start))}.")
        self.start_kind = start
        self.box = box

    def numbers(self, image_shape: Sequence[int]) -> int:
        """See `Representation`: its pixels."""
        return math.prod(image_shape)

    def start(self, observation: Observation, victim: Victim, seeds: Sequence[int]) -> Tensor:
        """See `Representation`: (R, B, C, H, W)."""
        shape = (observation.known_batch_size(), *observation.image_shape)
        if self.start_kind == "normal":
            return self.project(normal_rows(shape, seeds, "pixels").to(victim.mean), victim)
        if self.start_kind == "uniform":
            return victim.normalize(uniform_rows(shape, seeds, "pixels").to(victim.mean))
        if self.start_kind == "zeros":
            return self.project(victim.mean.new_zeros(len(seeds), *shape), victim)
        if self.start_kind == "pattern":
            return self.project(_tiles(shape, seeds).to(victim.mean), victim)
        gray = victim.mean.new_full((len(seeds), *shape), 0.5)
        if self.start_kind == "near_gray":
            gray += NEAR * normal_rows(shape, seeds, "pixels").to(gray)
        return victim.normalize(gray)

    def decode(self, variable: Tensor, victim: Victim, given: Given = NOTHING_GIVEN) -> Tensor:
        """See `Representation`."""
        return victim.denormalize(variable)

    def encode(self, images: Tensor, victim: Victim) -> Tensor:
        """See `Representation`."""
        return self.project(victim.normalize(images), victim)

    def project(self, variable: Tensor, victim: Victim) -> Tensor:
        """Return the nearest variable whose pixels are in [0, 1], or `variable` where there is no box."""
        if not self.box:
            return variable
        low, high = (victim.normalize(victim.mean.new_full(victim.image_shape, edge)) for edge in (0.0, 1.0))
        return torch.clamp(variable, low, high)


def _tiles(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """One random tile for each image of (B, C, H, W) and each channel, repeated: (R, B, C, H, W)."""
    size, channels, height, width = shape
    tile = normal_rows((size, channels, TILE, TILE), seeds, "pattern")
    return tile[..., torch.arange(height)[:, None] % TILE, torch.arange(width) % TILE]
