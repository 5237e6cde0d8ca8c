"""The metrics test themselves (rule R9) and agree with slow references."""

import pytest
import torch
from references import metrics as reference
from skimage.metrics import structural_similarity
from torch import Tensor

from gibench.errors import ConfigurationError, ImageRangeError, NonFiniteError, ShapeError
from gibench.matching import match, reorder
from gibench.metrics import ImageQuality, psnr


def images(count: int, channels: int = 3, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def quality() -> ImageQuality:
    return ImageQuality(lpips=())


def present(scores: dict[str, Tensor | None], name: str) -> Tensor:
    value = scores[name]
    assert value is not None
    assert value.dtype == torch.float64
    return value


def test_an_identical_image_scores_the_ceiling(quality: ImageQuality) -> None:
    scores = quality(images(3), images(3))
    assert present(scores, "psnr").tolist() == [100.0] * 3
    assert present(scores, "ssim").tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert present(scores, "mse").tolist() == [0.0] * 3


@pytest.mark.parametrize(("offset", "decibel"), [(1.0, 0.0), (0.1, 20.0), (0.01, 40.0), (1e-3, 60.0), (1e-6, 100.0)])
def test_a_known_error_gives_its_known_decibel(quality: ImageQuality, offset: float, decibel: float) -> None:
    private = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    scores = quality(private + offset, private)
    assert present(scores, "psnr").tolist() == pytest.approx([decibel] * 2, abs=1e-5)
    assert present(scores, "mse").tolist() == pytest.approx([offset**2] * 2, rel=1e-12)


def test_scores_are_per_image_not_pooled(quality: ImageQuality) -> None:
    private = torch.zeros(2, 1, 8, 8)
    reconstructed = torch.stack([torch.full((1, 8, 8), 0.01), torch.full((1, 8, 8), 1.0)])
    assert present(quality(reconstructed, private), "psnr").tolist() == pytest.approx([40.0, 0.0], abs=1e-5)


@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 28), (3, 7)])
def test_psnr_and_ssim_agree_with_their_definitions(quality: ImageQuality, channels: int, side: int) -> None:
    private = images(3, channels, side)
    reconstructed = (private + 0.2 * (images(3, channels, side, seed=1) - 0.5)).clamp(0, 1)
    scores = quality(reconstructed, private)
    pairs = list(zip(reconstructed.double().numpy(), private.double().numpy(), strict=True))
    assert present(scores, "psnr").tolist() == pytest.approx([reference.psnr(*pair) for pair in pairs], abs=1e-5)
    assert present(scores, "ssim").tolist() == pytest.approx([reference.ssim(*pair) for pair in pairs], abs=1e-6)


def test_scikit_image_differs_only_by_leaving_out_the_border(quality: ImageQuality) -> None:
    private, reconstructed = images(1, side=32), images(1, side=32, seed=1)
    first, second = (image[0].double().numpy() for image in (reconstructed, private))
    theirs = structural_similarity(
        first, second, data_range=1.0, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert theirs == pytest.approx(reference.ssim(first, second, border=5), abs=1e-6)
    assert theirs != pytest.approx(present(quality(reconstructed, private), "ssim").item(), abs=1e-3)


def test_a_permuted_batch_scores_the_same_after_matching(quality: ImageQuality) -> None:
    private = images(6).view(2, 3, 3, 16, 16)
    reconstructed = (private + 0.1 * images(6, seed=1).view_as(private)).clamp(0, 1)
    shuffled = reconstructed[:, [2, 0, 1]]
    expected = quality(reconstructed.flatten(0, 1), private.flatten(0, 1))
    matched = reorder(shuffled, match(shuffled, private))
    for name, scores in quality(matched.flatten(0, 1), private.flatten(0, 1)).items():
        assert scores is None or torch.equal(scores, present(expected, name))


@pytest.mark.parametrize("place", ["reconstructed", "private"])
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (images(2) * 255, ImageRangeError),
        (images(2) - 0.01, ImageRangeError),
        ((images(2) - 0.5) / 0.25, ImageRangeError),  # normalized
        ((images(2) * 255).byte(), ImageRangeError),
        (torch.full((2, 3, 16, 16), torch.nan), NonFiniteError),
        (torch.full((2, 3, 16, 16), torch.inf), NonFiniteError),
        (images(2)[0], ShapeError),
        (images(2)[None], ShapeError),
        (images(0), ShapeError),
        (images(3), ShapeError),
    ],
)
def test_bad_images_are_refused(quality: ImageQuality, place: str, bad: Tensor, error: type[Exception]) -> None:
    arguments = {"reconstructed": images(2), "private": images(2), place: bad}
    with pytest.raises(error) as caught:
        quality(**arguments)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_none_and_says_why(quality: ImageQuality) -> None:
    assert quality.availability == {
        "psnr": "available",
        "ssim": "available",
        "mse": "available",
        "lpips_alex": "not requested.",
        "lpips_vgg": "not requested.",
    }
    tiny = images(2, side=5)
    scores = quality(tiny, tiny)
    assert scores["ssim"] is None
    assert scores["lpips_alex"] is None
    assert present(scores, "psnr").tolist() == [100.0] * 2
    assert "6 px" in quality.availability_for((3, 5, 40))["ssim"]


def test_an_unknown_network_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="squeeze"):
        ImageQuality(lpips=["squeeze"])  # type: ignore[list-item]


def test_scores_do_not_depend_on_autocast(quality: ImageQuality) -> None:
    first, second = images(2), images(2, seed=1)
    expected = quality(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        scores = quality(first, second)
    assert torch.equal(present(scores, "ssim"), present(expected, "ssim"))


def test_psnr_of_a_failed_candidate_stays_nan() -> None:
    assert torch.isnan(psnr(torch.full((1, 3, 8, 8), torch.nan), torch.zeros(1, 3, 8, 8))).all()
