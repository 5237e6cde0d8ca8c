"""The embedded photographs: there on every machine, cut as stated, and full of structure."""

import numpy as np
import pytest
import torch
from skimage import data

from gibench.data import Photographs
from gibench.data.photographs import CLASSES, has_structure, patches
from gibench.data.splits import SPLIT_NAMES
from gibench.errors import DataNotFoundError


@pytest.fixture(scope="module")
def module() -> Photographs:
    return Photographs(updates=10, batch_size=5, sampler="distinct")


def test_five_classes_of_597_patches(module: Photographs) -> None:
    assert (module.image_shape, module.num_classes, module.class_names) == ((3, 32, 32), 5, CLASSES)
    labels = torch.cat([module.split(name).labels for name in SPLIT_NAMES])
    assert torch.bincount(labels).tolist() == [126, 84, 99, 236, 52]
    assert len(module.split("score").labels) >= 100  # rule R8: enough to rank


def test_each_split_holds_its_share_of_each_photograph(module: Photographs) -> None:
    total = np.array([126, 84, 99, 236, 52])
    for name, share in zip(SPLIT_NAMES, (0.6, 0.2, 0.2), strict=True):
        counts = torch.bincount(module.split(name).labels).numpy()
        assert (abs(counts - share * total) <= 1).all()


@pytest.mark.parametrize("name", CLASSES)
def test_patches_are_cut_from_the_photograph(module: Photographs, name: str) -> None:
    photograph = getattr(data, "immunohistochemistry" if name == "ihc" else name)()
    split = module.split("score")
    own = [index for index, label in enumerate(split.labels) if CLASSES[label] == name]
    assert own
    for index in own:
        prefix, place = split.ids[index].rsplit("/", 1)
        assert prefix == f"photographs/{name}"
        row, column = (32 * int(number) for number in place.removeprefix("r").split("c"))
        expected = torch.tensor(photograph[row : row + 32, column : column + 32]).permute(2, 0, 1) / 255
        torch.testing.assert_close(split.images[index], expected)


def test_constant_quarters_are_dropped() -> None:
    patch = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert has_structure(patch)
    patch[16:, :16] = 7
    assert not has_structure(patch)


def test_a_missing_photograph_is_named() -> None:
    with pytest.raises(DataNotFoundError, match=r"scikit-image's absent.png cannot be read .*reinstall scikit-image"):
        patches("absent.png")


def test_batches_of_distinct_photographs(module: Photographs) -> None:
    (batch,) = module.predict_dataloader()
    assert batch.images.shape == (10, 5, 3, 32, 32)
    assert all(len(set(labels)) == 5 for labels in batch.labels.tolist())
