"""Pictures inside the page: PNGs of any shape, and an animation that holds its last frame."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from gibench.report.pictures import gif_uri, png_uri


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize(("frames", "shown"), [(1, 1), (7, 7), (25, 25), (60, 25)])
def test_the_animation_ends_on_a_held_last_frame(frames: int, shown: int) -> None:
    coarse = torch.rand(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    private = torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")[0]
    fade = torch.linspace(0, 1, frames)[:, None, None, None]
    gif = decoded(gif_uri(fade * private if frames > 1 else private[None], private))
    durations, last = [], None
    for frame in ImageSequence.Iterator(gif):
        durations.append(frame.info["duration"])
        last = np.asarray(frame.convert("RGB"))
    assert durations == [140] * (shown - 1) + [2500]
    assert last is not None
    left, right = last[:128, :128], last[:128, 132:]
    truth = np.asarray(
        Image.fromarray((255 * private).byte().permute(1, 2, 0).numpy()).resize((128, 128), Image.Resampling.NEAREST)
    )
    assert np.array_equal(left, right)  # both halves get the same colors
    assert np.abs(left.astype(int) - truth).mean() < 3  # of 256 levels: what 120 colors allow


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 224, 160)])
def test_pictures_of_any_shape(shape: tuple[int, int, int]) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    picture = decoded(png_uri(image))
    assert picture.size == ((46, 64) if shape[1] == 224 else (shape[2], shape[1]))
    assert decoded(png_uri(torch.full(shape, torch.nan))).getextrema() in ((128, 128), ((128, 128),) * 3)
