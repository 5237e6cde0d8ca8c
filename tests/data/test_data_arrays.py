"""Arrays of users: every layout reads the same, and everything wrong has one clear line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gibench.data import Arrays
from gibench.errors import DataNotFoundError, GibenchError, ImageRangeError, NonFiniteError, ShapeError

DRAW = np.random.default_rng(0)
COLOR = DRAW.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8)
GRAY = DRAW.integers(0, 256, (30, 6, 5), dtype=np.uint8)
LABELS = np.arange(30) % 3


def save(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


@pytest.mark.parametrize(
    "images",
    [
        COLOR,
        COLOR.transpose(0, 3, 1, 2),
        COLOR / np.float32(255),
        COLOR / np.float64(255),
        COLOR.transpose(0, 3, 1, 2) / np.float32(255),
    ],
    ids=["NHWC", "NCHW", "NHWC float32", "NHWC float64", "NCHW float32"],
)
def test_layouts_and_types_of_the_same_color_images_agree(tmp_path: Path, images: NDArray[Any]) -> None:
    module = Arrays(save(tmp_path, images=images, labels=LABELS))
    assert (module.image_shape, module.num_classes, module.class_names) == ((3, 6, 5), 3, None)
    for name in ("prior", "tune", "score"):
        split = module.split(name)
        rows = [int(image_id.removeprefix("mine/")) for image_id in split.ids]
        torch.testing.assert_close(split.images, torch.tensor(COLOR[rows] / np.float32(255)).permute(0, 3, 1, 2))
        assert split.labels.tolist() == LABELS[rows].tolist()
        assert split.images.is_contiguous()


@pytest.mark.parametrize("images", [GRAY, GRAY[..., None], GRAY[:, None]], ids=["NHW", "NHWC", "NCHW"])
def test_layouts_of_the_same_gray_images_agree(tmp_path: Path, images: NDArray[Any]) -> None:
    split = Arrays(save(tmp_path, images=images, labels=LABELS)).split("prior")
    rows = [int(image_id.removeprefix("mine/")) for image_id in split.ids]
    torch.testing.assert_close(split.images, torch.tensor(GRAY[rows] / np.float32(255))[:, None])


NAN = np.where(np.arange(COLOR.size).reshape(COLOR.shape) == 7, np.nan, COLOR / 255)
NORMALIZED = (COLOR / np.float32(255) - 0.5) / 0.25
BAD_IMAGES: dict[str, tuple[Any, type[GibenchError], str]] = {
    "normalized": (NORMALIZED, ImageRangeError, r"spans \[-2, 2\]; store pixels in \[0, 1\]"),
    "float 0..255": (COLOR.astype(np.float32), ImageRangeError, r"spans \[0, 255\]"),
    "just above one": (COLOR / np.float32(254), ImageRangeError, "spans"),
    "integers": (COLOR.astype(np.int64), ImageRangeError, "is int64; store uint8"),
    "booleans": (COLOR > 127, ImageRangeError, "is bool; store uint8"),
    "complex": (COLOR.astype(np.complex64), ImageRangeError, "is complex64; store uint8"),
    "text": (np.full((30, 6, 5, 3), "a"), ImageRangeError, "is <U1; store uint8"),
    "uint8 of a float in [0, 1]": ((COLOR / 255).astype(np.uint8), ImageRangeError, "never exceeds 1"),
    "NaN": (NAN, NonFiniteError, "NaN or infinity"),
    "infinity": (np.where(COLOR == 255, np.inf, 0.5), NonFiniteError, "NaN or infinity"),
    "one image": (COLOR[0], ShapeError, r"mine.npz: labels|mine.npz: images"),
    "flat": (COLOR.reshape(30, -1), ShapeError, r"has shape \(30, 90\)"),
    "five axes": (COLOR[None], ShapeError, "pass \\(N, H, W, C\\)"),
    "none": (COLOR[:0], ShapeError, "none zero"),
    "alpha": (np.concatenate([COLOR, COLOR[..., :1]], axis=-1), ShapeError, "neither axis 1 nor axis 3"),
    "two readings": (COLOR[:, :3, :, :], ShapeError, "axes 1 and 3 both look like channels"),
    "too few": (COLOR[:29], ShapeError, "labels has shape .*pass 29 integers"),
    "objects": (np.array([None] * 30), DataNotFoundError, "not a readable .npz of plain arrays"),
}
BAD_LABELS: dict[str, tuple[Any, type[GibenchError], str]] = {
    "float": (LABELS.astype(np.float32), ShapeError, "float32; pass 30 integers"),
    "one-hot": (np.eye(3, dtype=np.int64)[LABELS], ShapeError, r"shape \(30, 3\)"),
    "too many": (np.zeros(31, np.int64), ShapeError, "pass 30 integers"),
    "scalar": (np.int64(3), ShapeError, "pass 30 integers"),
    "negative": (LABELS - 1, ShapeError, "number the classes from 0"),
    "names": (np.array(["cat"] * 30), ShapeError, "pass 30 integers"),
    "objects": (np.array([object()] * 30), DataNotFoundError, "not a readable .npz of plain arrays"),
}


def check(path: Path, error: type[GibenchError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        Arrays(path).setup()
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("images", "error", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
@pytest.mark.filterwarnings("ignore:.*pickle")
def test_bad_images_are_refused(tmp_path: Path, images: Any, error: type[GibenchError], message: str) -> None:
    check(save(tmp_path, images=images, labels=LABELS), error, message)


@pytest.mark.parametrize(("labels", "error", "message"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_bad_labels_are_refused(tmp_path: Path, labels: Any, error: type[GibenchError], message: str) -> None:
    check(save(tmp_path, images=COLOR, labels=labels), error, message)


def test_missing_keys_name_those_that_are_there(tmp_path: Path) -> None:
    check(save(tmp_path, x=COLOR, labels=LABELS), DataNotFoundError, "holds x, labels; add the array 'images'")
    check(save(tmp_path, images=COLOR), DataNotFoundError, "holds images; add the array 'labels'")
    check(save(tmp_path), DataNotFoundError, "holds nothing")


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    check(tmp_path / "absent.npz", DataNotFoundError, "there is no file .*absent.npz")
    check(tmp_path, DataNotFoundError, "there is no file")
    whole = save(tmp_path, images=COLOR, labels=LABELS).read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 4] ^= 255
    for content in (b"", b"no archive", b"PK\x03\x04", whole[: len(whole) // 2], whole[:-30], bytes(damaged)):
        (tmp_path / "bad.npz").write_bytes(content)
        check(tmp_path / "bad.npz", DataNotFoundError, "not a readable .npz of plain arrays")
    np.save(tmp_path / "one.npy", COLOR)
    check(tmp_path / "one.npy", DataNotFoundError, "is one array; name the arrays")


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", images=np.array([_Bomb(tmp_path / "fired")] * 3), labels=np.arange(3))
    check(tmp_path / "evil.npz", DataNotFoundError, "plain arrays")
    assert not (tmp_path / "fired").exists()


class _Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_what_is_not_here_is_looked_for_where_the_data_sets_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("GIBENCH_DATA", str(there))
    with pytest.raises(DataNotFoundError, match=r"no file mine\.npz"):
        _ = Arrays("mine.npz").image_shape
    save(there, images=COLOR, labels=LABELS)
    assert Arrays("mine.npz").image_shape == (3, 6, 5)
    save(here, images=GRAY, labels=LABELS)
    assert Arrays("mine.npz").image_shape == (1, 6, 5)
