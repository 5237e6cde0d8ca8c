"""What errors look like: against slow twins, and at the cases where the answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import metrics as reference
from torch import Tensor

from gibench.errors import ShapeError
from gibench.metrics import ErrorsInPictures, Lineup
from gibench.metrics.errors_in_pictures import bad_pixels, tv_ratio

IDS = [[f"score/{3 * u + b}" for b in range(3)] for u in range(2)]


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


PRIVATE, FOUND = images(2, 3, 3, 7, 5, seed=1), images(2, 3, 3, 7, 5, seed=2)
LABELS = torch.tensor([[0, 1, 1], [4, 0, 2]])  # no class mean for 4
MEANS = images(3, 3, 7, 5, seed=3)


def test_every_measure_is_its_slow_twin() -> None:
    others = images(9, 3, 7, 5, seed=4)
    others[:6] = PRIVATE.flatten(0, 1)
    others[8] = FOUND[1, 0] + 0.01 * (0.5 - FOUND[1, 0])  # a stranger that looks like one of the reconstructions
    lineup = Lineup(others, [*(name for row in IDS for name in row), "a", "b", "c"])
    found = ErrorsInPictures(class_means=MEANS, lineup=lineup)(FOUND, PRIVATE, LABELS, IDS)
    near = FOUND.double().numpy(), PRIVATE.double().numpy()
    for row, (update, position) in enumerate(np.ndindex(2, 3)):
        x, truth = near[0][update, position], near[1][update, position]
        mixture = near[1][update].mean(0)
        assert found.psnr_mixture[row] == pytest.approx(reference.psnr(x, mixture))
        label = int(LABELS[update, position])
        expected = None if label == 4 else pytest.approx(reference.psnr(x, MEANS[label].double().numpy()))
        assert found.psnr_class_mean[row] == expected
        assert found.bad_pixels[row] == pytest.approx(reference.bad_pixels(x, truth, 0.1))
        assert found.tv_ratio[row] == pytest.approx(reference.total_variation(x) / reference.total_variation(truth))
        strangers = np.delete(others.double().numpy(), row, axis=0)
        assert found.identified[row] is reference.identified(x, truth, strangers)
    assert found.identified[3] is False


def test_the_truth_itself_has_no_errors() -> None:
    lineup = Lineup(PRIVATE.flatten(0, 1), [name for row in IDS for name in row])
    found = ErrorsInPictures(lineup=lineup)(PRIVATE, PRIVATE, LABELS, IDS)
    assert found.bad_pixels == [0] * 6
    assert found.tv_ratio == pytest.approx([1] * 6)
    assert found.identified == [True] * 6
    assert found.psnr_class_mean == [None] * 6


def test_the_mean_of_the_batch_is_a_mixture_and_nobody() -> None:
    mean = PRIVATE.mean(1, keepdim=True).expand_as(PRIVATE)
    lineup = Lineup(torch.cat([PRIVATE.flatten(0, 1), mean[:, 0]]), [*(name for row in IDS for name in row), "a", "b"])
    found = ErrorsInPictures(lineup=lineup)(mean, PRIVATE, LABELS, IDS)
    assert found.psnr_mixture == [100] * 6
    assert found.identified == [False] * 6
    assert max(ratio for ratio in found.tv_ratio if ratio is not None) < 1


def test_one_image_has_no_mixture_and_a_constant_one_no_ratio() -> None:
    private = torch.full((1, 1, 3, 4, 4), 0.5)
    found = ErrorsInPictures()(images(1, 1, 3, 4, 4), private, torch.zeros(1, 1), [["a"]])
    assert found.psnr_mixture == found.tv_ratio == found.identified == [None]
    assert ErrorsInPictures()(private, private, torch.zeros(1, 1), [["a"]]).tv_ratio == [None]


def test_a_pixel_is_bad_by_its_worst_channel() -> None:
    private = torch.full((1, 1, 3, 2, 2), 0.5)
    found = private.clone()
    found[0, 0, 1, 0, 0] = 0.7  # one channel far off
    found[0, 0, :, 1, 1] = 0.55  # all channels a little
    assert bad_pixels(found, private).item() == 0.25


@given(st.floats(0.02, 0.5), st.integers(0, 99))
def test_noise_is_rougher_and_its_average_smoother(level: float, seed: int) -> None:
    smooth = torch.nn.functional.interpolate(images(1, 3, 4, 4, seed=seed), size=16, mode="bilinear")[None] * 0.5 + 0.25
    noise = level * (images(1, 1, 3, 16, 16, seed=seed + 100) - 0.5)
    blurred = torch.nn.functional.avg_pool2d(smooth[0], 5, stride=1, padding=2, count_include_pad=False)[None]
    assert tv_ratio(blurred, smooth).item() < 1 < tv_ratio(smooth + 4 * noise, smooth).item()
    assert tv_ratio(smooth + noise, smooth).item() < tv_ratio(smooth + 2 * noise, smooth).item()


def test_the_lineup_takes_bytes_chunks_and_transformed_truths(monkeypatch: pytest.MonkeyPatch) -> None:
    others = (255 * images(9, 3, 7, 5, seed=4)).byte()
    names = [*(name for row in IDS for name in row), "a", "b", "c"]
    whole = Lineup(others / 255, names)(FOUND, PRIVATE, [name for row in IDS for name in row])
    monkeypatch.setattr("gibench.metrics.errors_in_pictures._VALUES_AT_ONCE", 2 * 3 * 7 * 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert Lineup(others, names)(FOUND, PRIVATE, [name for row in IDS for name in row]) == whole
    # `private` is not what the lineup holds under its name, as with ATS: it stands for it.
    mirrored = PRIVATE.flip(-1)
    assert all(Lineup(PRIVATE.flatten(0, 1), names[:6])(mirrored, mirrored, names[:6]))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="the same"):
        ErrorsInPictures()(FOUND, PRIVATE[:1], LABELS, IDS)
    with pytest.raises(ShapeError, match="2 ids"):
        Lineup(PRIVATE[0], ["a", "b"])
