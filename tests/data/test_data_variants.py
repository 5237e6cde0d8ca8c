"""Variants of a data set: fewer classes, other pixels, more images; the splits never move, and everything tells."""

import json
import pickle
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references import shifts as reference

from gibench.data import CIFAR10, Arrays, ImageDataModule, Photographs
from gibench.data.shifts import SHIFTS, ShiftName, shifted
from gibench.data.variants import Variant
from gibench.errors import ConfigurationError, GibenchError, ShapeError
from gibench.runs.configuration import digest
from gibench.runs.plan import plan
from gibench.runs.suite import Cell

SPLITS: tuple[Any, ...] = ("prior", "tune", "score")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """250 random images (3, 8, 8) of five classes."""
    draw = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("data") / "mine.npz"
    np.savez(file, images=draw.integers(0, 256, (250, 8, 8, 3), dtype=np.uint8), labels=np.arange(250) % 5)
    return file


@given(st.sets(st.integers(0, 4), min_size=1), st.randoms(use_true_random=False))
def test_classes_are_the_same_images_in_the_same_splits(path: Path, classes: set[int], random: Any) -> None:
    asked = list(classes)
    random.shuffle(asked)
    whole, some = Arrays(path), Arrays(path, classes=asked)
    assert some.num_classes == whole.num_classes
    for name in SPLITS:
        everything, found = whole.split(name), some.split(name)
        kept = [row for row, label in enumerate(everything.labels.tolist()) if label in classes]
        assert found.ids == tuple(everything.ids[row] for row in kept)
        assert torch.equal(found.labels, everything.labels[kept])
        assert torch.equal(found.images, everything.images[kept])


def test_classes_change_every_hash_and_the_name(path: Path) -> None:
    whole, some = Arrays(path).describe(), Arrays(path, classes=[1, 0]).describe()
    assert some["name"] == "mine-classes0-1"
    assert all(some["split_hashes"][name] != whole["split_hashes"][name] for name in SPLITS)
    assert some["content_sha256"] != whole["content_sha256"]
    assert sum(some["split_sizes"].values()) == 100
    assert some == Arrays(path, classes=[0, 1]).describe()
    assert not set(some["split_hashes"].values()) & set(Arrays(path, classes=[2]).describe()["split_hashes"].values())


def test_a_subset_is_attacked_in_the_order_of_the_whole(path: Path) -> None:
    whole = [batch.image_ids for batch in Arrays(path, updates=40, together=2).predict_dataloader()]
    some = [batch.image_ids for batch in Arrays(path, updates=10, together=2, classes=[3, 4]).predict_dataloader()]
    flat = [row[0] for group in whole for row in group if int(row[0][-5:]) % 5 in (3, 4)]
    assert [row[0] for group in some for row in group] == flat[:10]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"classes": []}, ConfigurationError, "name one or more"),
        ({"classes": [0, 0]}, ConfigurationError, r"\[0, 0\] names one twice"),
        ({"classes": [-1]}, ConfigurationError, "by their numbers, from 0"),
        ({"classes": [True]}, ConfigurationError, "by their numbers, from 0"),
        ({"classes": [2, 5]}, ConfigurationError, "no class 5 in photographs, whose classes are 0 to 4"),
        ({"size": 0}, ConfigurationError, "size is 0"),
        ({"shift": "sepia"}, ConfigurationError, "shift is 'sepia'; choose one of gray"),
        ({"synthetic": "gan"}, ConfigurationError, "choose 'dct'"),
    ],
)
def test_what_no_data_set_can_give_is_refused(
    arguments: dict[str, Any], error: type[GibenchError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Photographs(**arguments).setup()


def test_what_one_data_set_cannot_give_is_refused(tmp_path: Path) -> None:
    rectangular = np.random.default_rng(0).integers(0, 256, (40, 4, 6, 1), dtype=np.uint8)
    np.savez(tmp_path / "odd.npz", images=rectangular, labels=np.array([0] * 39 + [1]))
    file = tmp_path / "odd.npz"
    with pytest.raises(ShapeError, match="odd are 4 x 6; cut them square"):
        Arrays(file, size=4).setup()
    with pytest.raises(ConfigurationError, match="not square"):
        Arrays(file, shift="rotated").split("score")
    with pytest.raises(ConfigurationError, match="the images are gray"):
        Arrays(file, shift="gray").split("score")
    with pytest.raises(ConfigurationError, match=r"odd has no image of classes \(1,\) in its split"):
        Arrays(file, classes=[1]).setup()


@pytest.mark.parametrize("shift", SHIFTS)
def test_shifts_are_those_of_an_independent_implementation(shift: ShiftName) -> None:
    images = Photographs().split("score").images[:6]
    found = shifted(images, shift).movedim(1, -1).numpy()
    expected = np.stack([getattr(reference, shift)(image) for image in images.movedim(1, -1).double().numpy()])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert not np.allclose(found, images.movedim(1, -1).numpy(), atol=0.05)


@given(st.sampled_from(SHIFTS), st.integers(0, 2**32 - 1))
def test_shifted_pixels_stay_pixels(shift: ShiftName, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 2, (2, 3, 5, 5), generator=generator).float()  # the extremes
    found = shifted(images, shift)
    assert found.shape == images.shape
    assert found.is_contiguous()
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(("name", "options"), [("gray", {"shift": "gray"}), ("16px", {"size": 16})])
def test_other_pixels_are_told_and_the_same_images_attacked(name: str, options: dict[str, Any]) -> None:
    plain, other = Photographs(updates=8), Photographs(updates=8, **options)
    assert other.title == f"photographs-{name}"
    before, after = next(iter(plain.predict_dataloader())), next(iter(other.predict_dataloader()))
    assert after.image_ids == tuple(tuple(f"{each}+{name}" for each in row) for row in before.image_ids)
    assert torch.equal(before.labels, after.labels)
    assert all(plain.split_hashes()[split] != other.split_hashes()[split] for split in SPLITS)
    assert plain.describe()["content_sha256"] != other.describe()["content_sha256"]


def test_bytes_stay_bytes_and_a_shift_is_the_same_in_another_process(path: Path) -> None:
    module = Arrays(path, shift="blur", updates=4)
    batch = next(iter(module.predict_dataloader()))
    levels = batch.images * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    again = next(iter(pickle.loads(pickle.dumps(Arrays(path, shift="blur", updates=4))).predict_dataloader()))  # noqa: S301 - our own
    assert torch.equal(batch.images, again.images)


def test_resizing_is_that_of_pillow(flowers17: Path) -> None:
    stored = np.load(flowers17)
    module = Arrays(flowers17, size=32, classes=range(10))
    split = module.split("tune")
    assert (module.image_shape, module.num_classes, int(split.labels.max())) == ((3, 32, 32), 17, 9)
    assert module.title == "flowers17-classes0-9-32px"
    for image, name in zip(split.images[:20], split.ids[:20], strict=True):
        row = int(name.removeprefix("flowers17/").removesuffix("+32px"))
        expected = reference.resized(stored["images"][row], 32).astype(float)
        found = image.movedim(0, -1).numpy() * 255
        assert np.abs(found - expected).max() <= 1.01  # Pillow rounds between the axes


def test_synthetic_images_have_the_spectrum_of_the_real_ones_and_nothing_else() -> None:
    real, module = Photographs(classes=[0, 1]).split("prior"), Photographs(classes=[0, 1], synthetic="dct")
    whole, count = module.split("prior"), len(real.ids)
    assert torch.equal(whole.images[:count], real.images)
    assert whole.ids == (*real.ids, *(f"{name}+dct" for name in real.ids))
    assert set(whole.labels[count:].tolist()) == set(range(5))  # of all classes, at random
    twins = whole.images[count:]
    first, second = (reference.spectrum(each.movedim(1, -1).double().numpy()) for each in (real.images, twins))
    # Clamping takes the largest coefficients back; medians over the spectrum hold against it.
    ratio = np.median(second[:, 1:, 1:].std(0) / first[:, 1:, 1:].std(0))
    assert 0.75 < ratio < 1.1
    shuffled = np.corrcoef(twins.flatten(1).numpy(), real.images.flatten(1).numpy())[:count, count:]
    assert abs(np.diag(shuffled).mean() - shuffled.mean()) < 0.05  # no twin knows its image
    for name in ("tune", "score"):
        assert module.split(name).ids == Photographs(classes=[0, 1]).split(name).ids


def test_synthetic_images_depend_on_their_names_and_the_prior_alone() -> None:
    options: dict[str, Any] = {"classes": [2], "synthetic": "dct"}
    first, second = (Photographs(**options, seed=seed).split("prior") for seed in (0, 1))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)


def test_a_run_begun_without_variants_goes_on_and_one_with_another_does_not() -> None:
    def identity(**options: Any) -> str:
        parts = {
            "data": {"class_path": "gibench.data.Photographs", "init_args": {"updates": 2, **options}},
            "client": {
                "class_path": "gibench.clients.FedSGD",
                "init_args": {
                    "victim": {"class_path": "gibench.victims.mlp", "init_args": {"width": 4}},
                    "threat_model": {"victim": "initial", "batch_norm": "absent"},
                },
            },
            "attack": {"class_path": "gibench.attacks.BiasAttack"},
        }
        return json.dumps(plan([Cell("scenario", "bias", parts)], [], None)[0].identity)

    now = json.loads(identity())
    assert "k" in now["data"]["init_args"]
    assert not {"classes", "size", "shift", "synthetic"} & now["data"]["init_args"].keys()
    changes: list[dict[str, Any]] = [{}, {"classes": [0]}, {"shift": "gray"}, {"size": 16}, {"synthetic": "dct"}]
    assert len({digest(identity(**change)) for change in changes}) == 5


def test_titles_are_names_of_folders() -> None:
    assert Variant().title("cifar10") == "cifar10"
    assert Variant((5, 6, 7, 9), 32, "gray", "dct").title("cifar10") == "cifar10-classes5-7_9-32px-gray-dct"
    long = Variant(tuple(range(0, 200, 2))).title("tiny_imagenet")
    assert len(long) <= 80
    assert long != Variant(tuple(range(1, 200, 2))).title("tiny_imagenet")
    assert set(get_args(ShiftName)) == set(SHIFTS)


def test_real_images_of_some_classes(cifar10_root: Path) -> None:
    attacked = CIFAR10(cifar10_root, classes=range(5))
    learned = CIFAR10(cifar10_root, classes=range(5, 10))
    assert attacked.describe()["split_sizes"] == {"prior": 25000, "tune": 982, "score": 4018}
    scored = {name for batch in attacked.predict_dataloader() for row in batch.image_ids for name in row}
    assert not scored & set(learned.split("tune").ids)
    assert attacked.image_shape == ImageDataModule.image_shape.fget(learned)  # type: ignore[attr-defined]
    assert learned.split("tune").labels.min() == 5
