"""CIFAR-10 and MNIST: where they are looked for, what is refused, and that the real images are the real ones."""

import os
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision import datasets

from gibench.data import CIFAR10, MNIST, ImageDataModule
from gibench.errors import DataNotFoundError, GibenchError, ImageRangeError, ShapeError

DRAW = np.random.default_rng(0)
CIFAR: dict[str, Any] = {
    "train_images": DRAW.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8),
    "train_labels": np.arange(50) % 10,
    "test_images": DRAW.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8),
    "test_labels": np.arange(30) % 10,
}
DIGITS = {key: array[:, :28, :28, 0] if "images" in key else array for key, array in CIFAR.items()}


@pytest.fixture(autouse=True)
def no_data_from_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GIBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def write_cifar_batches(root: Path) -> None:
    """Write CIFAR as the official python version stores it: rows of 3,072 bytes, channel by channel."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": labels.tolist()}))

    for number in range(5):
        part = slice(10 * number, 10 * number + 10)
        write(f"data_batch_{number + 1}", CIFAR["train_images"][part], CIFAR["train_labels"][part])
    write("test_batch", CIFAR["test_images"], CIFAR["test_labels"])
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))


def write_mnist_raw(root: Path) -> None:
    """Write DIGITS as idx files: a magic number, the sizes (big-endian), the bytes."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, stem in (("train", "train"), ("test", "t10k")):
        for kind, magic in (("images", "images-idx3"), ("labels", "labels-idx1")):
            array = DIGITS[f"{part}_{kind}"].astype(np.uint8)
            header = np.array([0x0800 + array.ndim, *array.shape], dtype=">i4").tobytes()
            (folder / f"{stem}-{magic}-ubyte").write_bytes(header + array.tobytes())


def same(one: ImageDataModule, other: ImageDataModule) -> bool:
    images = all(torch.equal(one.split(name).images, other.split(name).images) for name in ("prior", "tune", "score"))
    return images and one.describe() == other.describe()


def test_cifar10_reads_the_same_from_either_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)  # it knows the hashes of the real files
    np.savez(tmp_path / "cifar10.npz", **CIFAR)
    write_cifar_batches(tmp_path / "official")
    module = CIFAR10(tmp_path, updates=10)
    assert same(module, CIFAR10(tmp_path / "official", updates=10))
    assert (module.image_shape, module.num_classes) == ((3, 32, 32), 10)
    assert module.split("tune").ids[0].startswith("cifar10/test/000")
    assert module.split("prior").ids == tuple(f"cifar10/train/{index:05d}" for index in range(50))


def test_mnist_reads_the_same_from_either_layout(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "mnist.npz", **DIGITS)
    write_mnist_raw(tmp_path / "official")
    module = MNIST(tmp_path, updates=10)
    assert same(module, MNIST(tmp_path / "official", updates=10))
    assert (module.image_shape, module.num_classes) == ((1, 28, 28), 10)
    assert [len(module.split(name).ids) for name in ("prior", "tune", "score")] == [50, 6, 24]


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "cifar10.npz", **CIFAR)
    split = CIFAR10(tmp_path).split("score")
    rows = [int(name.removeprefix("cifar10/test/")) for name in split.ids]
    expected = torch.tensor(CIFAR["test_images"][rows] / np.float32(255)).permute(0, 3, 1, 2)
    torch.testing.assert_close(split.images, expected)
    assert split.labels.tolist() == CIFAR["test_labels"][rows].tolist()


def test_the_root_is_the_argument_then_the_environment_then_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CIFAR10().root == Path("data")
    monkeypatch.setenv("GIBENCH_DATA", str(tmp_path))
    assert CIFAR10().root == tmp_path
    assert CIFAR10("elsewhere").root == Path("elsewhere")


@pytest.mark.parametrize("data_set", [CIFAR10, MNIST])
def test_missing_data_says_what_to_do(data_set: type[CIFAR10] | type[MNIST]) -> None:
    module = data_set("nowhere")  # building it needs no files
    with pytest.raises(DataNotFoundError, match=r"is not in nowhere .*set GIBENCH_DATA or root.*set download to true"):
        module.prepare_data()


@pytest.mark.parametrize("data_set", [CIFAR10, MNIST])
def test_a_download_without_network_says_what_to_do(
    data_set: type[CIFAR10] | type[MNIST], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unplugged(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    for module in ("cifar", "mnist"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", unplugged)
    with pytest.raises(DataNotFoundError, match=r"torchvision cannot download .*network") as caught:
        data_set(tmp_path / "new", download=True).setup()
    assert "\n" not in str(caught.value)


def test_files_that_are_there_are_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gibench.data.official._read_torchvision", None)
    np.savez(tmp_path / "cifar10.npz", **CIFAR)
    CIFAR10(tmp_path, download=True, updates=2).setup()


def test_an_incomplete_torchvision_folder_is_named(tmp_path: Path) -> None:
    write_cifar_batches(tmp_path)  # its hashes are not the official ones
    with pytest.raises(DataNotFoundError, match=r"torchvision cannot read CIFAR10 .*delete what is incomplete"):
        CIFAR10(tmp_path).setup()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"test_images": (CIFAR["test_images"] / 255 - 0.5) * 4}, ImageRangeError, r"test_images spans \[-2, 2\]"),
        ({"test_images": CIFAR["test_images"][:, :28, :28]}, ShapeError, r"its labels ask for \(30, 32, 32, 3\)"),
        ({"test_images": CIFAR["test_images"][:29]}, ShapeError, r"\(29, 32, 32, 3\); its labels ask for \(30"),
        ({"test_labels": CIFAR["test_labels"] + 1}, ShapeError, r"number the classes from 0 to 9"),
        ({"test_labels": CIFAR["test_labels"] / 2}, ShapeError, "pass 30 integers"),
    ],
    ids=["normalized", "cropped", "too few", "label 10", "float labels"],
)
def test_files_that_are_not_the_data_set_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[GibenchError], message: str
) -> None:
    np.savez(tmp_path / "cifar10.npz", **{**CIFAR, **change})
    with pytest.raises(error, match=message) as caught:
        next(iter(CIFAR10(tmp_path, updates=2).predict_dataloader()))
    assert "\n" not in str(caught.value)


def test_the_real_cifar10(cifar10_root: Path) -> None:
    module = CIFAR10(cifar10_root)
    assert module.class_names is not None
    assert module.class_names[3] == "cat"
    assert module.describe()["split_sizes"] == {"prior": 50_000, "tune": 2000, "score": 8000}
    train = module.split("prior")
    std, mean = torch.std_mean(train.images, (0, 2, 3))  # published for the 50,000 train images:
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-4, rtol=0)
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert train.labels[:3].tolist() == [6, 9, 9]  # frog, truck, truck
    counts = torch.bincount(module.split("tune").labels) + torch.bincount(module.split("score").labels)
    assert counts.tolist() == [1000] * 10


def test_real_batches_of_cifar10_without_repeated_labels(cifar10_root: Path) -> None:
    module = CIFAR10(cifar10_root, batch_size=8, updates=5, together=2, sampler="distinct")
    groups = list(module.predict_dataloader())
    assert [batch.images.shape for batch in groups] == [(2, 8, 3, 32, 32), (3, 8, 3, 32, 32)]
    assert all(len(set(labels)) == 8 for batch in groups for labels in batch.labels.tolist())
    score = module.split("score")
    for batch in groups:
        for image, name in zip(batch.images.flatten(0, 1), sum(batch.image_ids, ()), strict=True):
            assert torch.equal(image, score.images[score.ids.index(name)])


@pytest.mark.skipif("GIBENCH_DATA" not in os.environ, reason="needs MNIST: set GIBENCH_DATA to a folder with mnist.npz")
def test_the_real_mnist(request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue("cifar10_root")
    train = MNIST(root).split("prior").images
    assert train.mean().item() == pytest.approx(0.1307, abs=0.002)  # published for the 60,000 train images
    assert train.std().item() == pytest.approx(0.3081, abs=0.002)
