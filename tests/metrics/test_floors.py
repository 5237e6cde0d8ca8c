"""Floors: content-free answers from the prior split alone (rule R5), at the values measured on CIFAR-10."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from references import metrics as reference
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from gibench.errors import ImageRangeError, NonFiniteError, ShapeError
from gibench.metrics import Floors, ImageQuality
from gibench.metrics.floors import BATCH_MEAN, CLASS_MEAN, MEAN_IMAGE, NEAREST_IMAGE, RANDOM_IMAGE
from gibench.types import Batch

PRIOR = torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
PRIOR_LABELS = torch.tensor([0, 1, 3, 3] * 10)


def batch(images: Tensor, labels: Tensor, first_id: int = 0) -> Batch:
    updates, size = labels.shape
    ids = [[f"image {first_id + u * size + b}" for b in range(size)] for u in range(updates)]
    return Batch(
        images=images,
        labels=labels,
        image_ids=tuple(map(tuple, ids)),
        update_ids=tuple(str(u) for u in range(updates)),
    )


@pytest.fixture
def private() -> Batch:
    images = torch.rand(3, 2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return batch(images, torch.tensor([[0, 1], [3, 2], [9, 0]]))


def test_each_floor_is_what_its_name_says(private: Batch) -> None:
    floors = Floors(PRIOR, PRIOR_LABELS, seed=0)(private, labels_known=True)
    mean = PRIOR.mean(0)
    torch.testing.assert_close(floors[MEAN_IMAGE], mean.expand(3, 2, -1, -1, -1))
    for update, position in np.ndindex(3, 2):
        members = PRIOR[private.labels[update, position] == PRIOR_LABELS]
        expected = members.mean(0) if len(members) else mean  # classes 2 and 9 are not in the prior split
        torch.testing.assert_close(floors[CLASS_MEAN][update, position], expected)
        assert (floors[RANDOM_IMAGE][update, position] == PRIOR).all((1, 2, 3)).any()
    nearest = reference.nearest(private.images.flatten(0, 1).double().numpy(), PRIOR.double().numpy())
    torch.testing.assert_close(floors[NEAREST_IMAGE].flatten(0, 1).double(), torch.from_numpy(nearest))
    for images in floors.values():
        assert images.shape == private.images.shape
        assert images.dtype == private.images.dtype


def test_the_mean_of_the_batch_is_an_oracle_of_batches(private: Batch) -> None:
    floors = Floors(PRIOR, PRIOR_LABELS, seed=0)
    for update, position in np.ndindex(3, 2):
        expected = (private.images[update, 0] + private.images[update, 1]) / 2
        torch.testing.assert_close(floors.batch_mean(private)[update, position], expected)
    single = batch(private.images[:, :1], private.labels[:, :1])
    assert BATCH_MEAN in floors(private, labels_known=False)
    assert BATCH_MEAN not in floors(single, labels_known=True)
    assert BATCH_MEAN.endswith("(oracle)")  # which keeps it from being a hurdle


def test_the_class_mean_needs_the_labels(private: Batch) -> None:
    known, unknown = (Floors(PRIOR, PRIOR_LABELS, seed=0)(private, labels_known=known) for known in (True, False))
    assert known.keys() - unknown.keys() == {CLASS_MEAN}


def test_bytes_and_floats_agree_in_any_number_of_chunks(private: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    as_bytes = (PRIOR * 255).byte()
    expected = Floors(as_bytes / 255, PRIOR_LABELS, seed=0)(private, labels_known=True)
    monkeypatch.setattr("gibench.metrics.floors._VALUES_AT_ONCE", 7 * PRIOR[0].numel())
    found = Floors(as_bytes, PRIOR_LABELS, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        for name, images in found(private, labels_known=True).items():
            torch.testing.assert_close(images, expected[name])


def test_a_prior_image_is_its_own_nearest(private: Batch) -> None:
    twin = private.model_copy(update={"images": PRIOR[[5, 17, 39, 0, 8, 21]].view(3, 2, 3, 6, 6)})
    assert torch.equal(Floors(PRIOR, PRIOR_LABELS, seed=0).nearest_image(twin), twin.images)


def test_the_random_image_follows_the_id_not_the_order(private: Batch) -> None:
    floors = Floors(PRIOR, PRIOR_LABELS, seed=0)
    together = floors.random_image(private)
    alone = batch(private.images[1:2], private.labels[1:2], first_id=2)
    assert torch.equal(floors.random_image(alone), together[1:2])
    assert not torch.equal(Floors(PRIOR, PRIOR_LABELS, seed=1).random_image(private), together)
    assert len(together.flatten(0, 1).unique(dim=0)) > 1


@pytest.mark.parametrize(
    ("images", "labels", "error"),
    [
        (PRIOR * 2, PRIOR_LABELS, ImageRangeError),
        (PRIOR.long(), PRIOR_LABELS, ImageRangeError),
        (torch.full_like(PRIOR, torch.nan), PRIOR_LABELS, NonFiniteError),
        (PRIOR[0], PRIOR_LABELS, ShapeError),
        (PRIOR[:0], PRIOR_LABELS[:0], ShapeError),
        (PRIOR, PRIOR_LABELS[1:], ShapeError),
        (PRIOR, PRIOR_LABELS - 1, ShapeError),
        (PRIOR, PRIOR_LABELS.float(), ShapeError),
    ],
)
def test_a_bad_prior_is_refused(images: Tensor, labels: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        Floors(images, labels, seed=0)


def test_a_prior_of_another_size_is_refused(private: Batch) -> None:
    with pytest.raises(ShapeError, match="one data set"):
        Floors(PRIOR[..., 1:], PRIOR_LABELS, seed=0)(private, labels_known=True)


@pytest.fixture(scope="module")
def cifar10(cifar10_root: Path) -> tuple[Floors, Batch]:
    """The floors of the train images, and 1,000 test images."""
    with np.load(cifar10_root / "cifar10.npz") as arrays:
        images, labels = (torch.from_numpy(arrays[name][:1000]) for name in ("test_images", "test_labels"))
        prior, prior_labels = (torch.from_numpy(arrays[name]) for name in ("train_images", "train_labels"))
    private = batch(images.permute(0, 3, 1, 2)[:, None] / 255, labels.long()[:, None])
    return Floors(prior.permute(0, 3, 1, 2), prior_labels, seed=0), private


@pytest.mark.parametrize(
    ("floor", "decibel", "spread", "inner", "similarity"),
    [
        # SSIM without its border of 5 px (the convention of the earlier measurement), then as we report it.
        (Floors.mean_image, 12.70, 0.01, 0.135, 0.192),
        (Floors.class_mean, 13.12, 0.01, 0.147, 0.203),
        (Floors.random_image, 9.54, 0.25, 0.049, 0.069),  # depends on the draw
        pytest.param(Floors.nearest_image, 15.90, 0.01, 0.269, 0.295, marks=pytest.mark.slow),  # 50 million pairs
    ],
)
def test_the_floors_of_cifar10_are_the_measured_ones(
    cifar10: tuple[Floors, Batch],
    floor: Callable[[Floors, Batch], Tensor],
    decibel: float,
    spread: float,
    inner: float,
    similarity: float,
) -> None:
    floors, private = cifar10
    pair = floor(floors, private).flatten(0, 1), private.images.flatten(0, 1)
    scores = ImageQuality(lpips=())(*pair)
    assert scores["psnr"].mean().item() == pytest.approx(decibel, abs=spread)  # type: ignore[union-attr]
    assert scores["ssim"].mean().item() == pytest.approx(similarity, abs=0.01)  # type: ignore[union-attr]
    assert inner_ssim(*pair) == pytest.approx(inner, abs=0.01)


def inner_ssim(first: Tensor, second: Tensor) -> float:
    pairs = zip(first.split(4), second.split(4), strict=True)  # type: ignore[no-untyped-call]
    maps = [structural_similarity_index_measure(*pair, data_range=1.0, return_full_image=True)[1] for pair in pairs]
    return torch.cat(maps)[..., 5:-5, 5:-5].mean().item()
