"""CIFAR-10: 60,000 color images of 32 x 32 pixels in ten classes (Krizhevsky, 2009)."""

from pathlib import Path
from typing import Any

from gibench.data.base import ImageDataModule
from gibench.data.collection import Collection
from gibench.data.official import collect_official, data_root

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10(ImageDataModule):
    """Private batches from CIFAR-10, images (3, 32, 32) in [0, 1].

    prior: the 50,000 train images. tune, score: 2,000 and 8,000 test images. Ids: "cifar10/test/00123".

    Args:
        root: folder with torchvision's cifar-10-batches-py, or with cifar10.npz of uint8 arrays train_images
            (N, 32, 32, 3), train_labels, test_images, test_labels; by default what GIBENCH_DATA names, else "data".
        download: let torchvision download to `root` where it holds neither.
        sampling: as in ImageDataModule.

    Raises:
        DataNotFoundError: on first use, when the data set is neither there nor downloadable.
    """

    def __init__(self, root: str | Path | None = None, *, download: bool = False, **sampling: Any) -> None:  # noqa: ANN401 - ImageDataModule types them
        super().__init__(**sampling)
        self.name = "cifar10"
        self.root = data_root(root)
        self.download = download

    def collect(self) -> Collection:
        """Find the four arrays and divide the test images."""
        return collect_official(
            self.name,
            self.root,
            download=self.download,
            dataset="CIFAR10",
            folder="cifar-10-batches-py",
            image_shape=(3, 32, 32),
            class_names=CLASSES,
        )
