"""TAEF2 with its published weights, against the round trips that were measured with its own code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.nn import functional as F

from generators.pretrained import pretrained, pretrained_encoder
from generators.range_limit import RangeLimit
from generators.taef2 import TAEF2, TAEF2Encoder
from gibench.errors import ConfigurationError

SHA256 = "15c7659963173c59b6cd90b02ba9fb73de0f94ea217a3b9a12a13e89e5bb3c97"


@pytest.fixture(scope="module")
def decoder_file(weights_root: Path) -> Path:
    return existing(weights_root / "taef2_decoder_fp16.safetensors")


@pytest.fixture(scope="module")
def encoder(weights_root: Path) -> TAEF2Encoder:
    return pretrained_encoder(path=existing(weights_root / "taef2_encoder_fp16.safetensors"))


@pytest.fixture(scope="module")
def images(cifar10_root: Path) -> Tensor:
    """(100, 3, 32, 32), the first of the test split."""
    with np.load(cifar10_root / "cifar10.npz") as file:
        return torch.from_numpy(file["test_images"][:100]).permute(0, 3, 1, 2).float() / 255


def existing(file: Path) -> Path:
    if not file.is_file():
        pytest.skip(f"needs {file.name} in GIBENCH_WEIGHTS.")
    return file


def psnr(found: Tensor, wanted: Tensor) -> float:
    return float((-10 * (found - wanted).square().flatten(1).mean(1).log10()).mean())


@pytest.mark.parametrize(("side", "expected"), [(32, 24.1), (64, 30.6)])
def test_round_trips_have_the_measured_psnr(
    side: int, expected: float, decoder_file: Path, encoder: TAEF2Encoder, images: Tensor
) -> None:
    generator = pretrained(path=decoder_file, model="taef2", sha256=SHA256, settings={"image_shape": [3, side, side]})
    if side != images.shape[2]:
        images = F.interpolate(images[:24], size=side, mode="bicubic", antialias=True).clamp(0, 1)
    latents = encoder(images)
    assert latents.shape[1:] == generator.latent_shape
    assert psnr(generator(latents), images) == pytest.approx(expected, abs=0.3)
    assert 0.7 < latents.std() < 1.1


def test_a_search_of_its_range_from_the_encoders_latent_gets_closer(
    decoder_file: Path, encoder: TAEF2Encoder, images: Tensor
) -> None:
    generator = pretrained(path=decoder_file, model="taef2")
    few = images[:2]
    found = RangeLimit(generator, steps=15, restarts=0, encoder=encoder, rate=0.03)(few[None])[0]
    assert psnr(found, few) > psnr(generator(encoder(few)), few) + 0.5


def test_stages_are_the_sides() -> None:
    torch.manual_seed(0)
    made = TAEF2(image_shape=(3, 16, 24)).eval()
    shapes = [tuple(made.features_shape(stage)) for stage in range(made.depth + 1)]
    assert shapes == [(32, 2, 3), (64, 2, 3), (64, 4, 6), (64, 8, 12), (3, 16, 24)]
    latents = torch.randn(2, 32, 2, 3)
    whole = made.layers(latents).clamp(0, 1)
    for stage in range(made.depth):
        torch.testing.assert_close(made(made(latents, last=stage), first=stage), whole)


def test_it_is_differentiable_twice() -> None:
    torch.manual_seed(0)
    made = TAEF2(image_shape=(3, 8, 8)).double().eval()
    torch.nn.init.constant_(made.layers[-1].bias, 0.5)  # inside of [0, 1]
    latents, direction = torch.randn(2, 1, 32, 1, 1, dtype=torch.float64)

    def slope(value: Tensor) -> Tensor:
        found: Tensor = grad(lambda each: (made(each) - 0.2).square().sum())(value)
        return found

    _, found = jvp(slope, (latents,), (direction,))
    step = 1e-6
    expected = (slope(latents + step * direction) - slope(latents - step * direction)) / (2 * step)
    assert found.abs().max() > 1e-6
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("shape", [(3, 20, 32), (1, 32, 32), (3, 32), (3, 0, 8)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="multiples of 8"):
        TAEF2(image_shape=shape)
