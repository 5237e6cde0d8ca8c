"""Where the search of pixels starts."""

from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim

from gibench.clients import FedSGD
from gibench.errors import ConfigurationError
from gibench.search import Pixels
from gibench.types import Observation

SEEDS = [5, 6, 7]


def observe(side: int = 8, size: int = 2) -> Observation:
    return FedSGD(small_victim(side=side)).double()(batch_of(1, size, side=side).to(torch.float64))


def begin(start: Any, *, side: int = 8, seeds: list[int] | None = None, box: bool = True) -> torch.Tensor:
    observation = observe(side)
    return Pixels(start=start, box=box).start(observation, observation.victim, seeds or SEEDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", ["normal", "uniform", "gray", "zeros", "pattern", "near_gray"])
def test_every_start_is_of_its_seeds_and_in_the_box(start: str) -> None:
    found = begin(start)
    assert found.shape == (3, 2, 3, 8, 8)
    assert found.dtype == torch.float64
    pixels = small_victim().double().denormalize(found)
    assert pixels.min() >= -1e-9
    assert pixels.max() <= 1 + 1e-9
    for row, seed in enumerate(SEEDS):
        assert torch.equal(begin(start, seeds=[seed])[0], found[row])
    random = start in ("normal", "uniform", "pattern", "near_gray")
    assert torch.equal(found[0], found[1]) != random
    assert torch.equal(found[:, 0], found[:, 1]) != random


def test_zeros_are_the_mean_color() -> None:
    pixels = small_victim().double().denormalize(begin("zeros"))
    expected = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64).reshape(3, 1, 1).expand_as(pixels)
    torch.testing.assert_close(pixels, expected)


@pytest.mark.parametrize("side", [8, 10])
def test_a_pattern_repeats_every_four_pixels_and_is_cut_off_at_the_edge(side: int) -> None:
    found = begin("pattern", side=side, box=False)
    assert found.shape[-2:] == (side, side)
    for height in range(side):
        for width in range(side):
            assert torch.equal(found[..., height, width], found[..., height % 4, width % 4])
    tile = found[..., :4, :4]
    assert len(tile.unique()) == tile.numel()


def test_the_tile_is_standard_normal_in_the_victims_units() -> None:
    tile = begin("pattern", seeds=list(range(200)), box=False)[..., :4, :4]
    assert tile.mean().abs() < 5 / tile.numel() ** 0.5
    assert tile.std().item() == pytest.approx(1.0, abs=0.02)
    boxed = begin("pattern", seeds=list(range(200)))[..., :4, :4]
    low, high = -0.4 / 0.2, 0.6 / 0.2
    torch.testing.assert_close(boxed[:, :, 0], tile[:, :, 0].clamp(low, high))


def test_a_start_that_does_not_exist_is_named() -> None:
    with pytest.raises(
        ConfigurationError, match="start is 'noise'; choose one of normal, uniform, gray, zeros, pattern, near_gray"
    ):
        Pixels(start="noise")  # type: ignore[arg-type]
