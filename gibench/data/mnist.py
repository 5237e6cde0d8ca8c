"""MNIST: 70,000 gray digits of 28 x 28 pixels (LeCun, Cortes and Burges, 1998)."""

from pathlib import Path
from typing import Any

from gibench.data.base import ImageDataModule
from gibench.data.collection import Collection
from gibench.data.official import collect_official, data_root


class MNIST(ImageDataModule):
    """Private batches from MNIST, images (1, 28, 28) in [0, 1].

    prior: the train images. tune, score: a fifth and four fifths of the test images. Ids: "mnist/test/00123".

    Args:
        root: folder with torchvision's MNIST/raw, or with mnist.npz of uint8 arrays train_images (N, 28, 28),
            train_labels, test_images, test_labels, any N; by default what GIBENCH_DATA names, else "data".
        download: let torchvision download to `root` where it holds neither.
        sampling: as in ImageDataModule.

    Raises:
        DataNotFoundError: on first use, when the data set is neither there nor downloadable.
    """

    def __init__(self, root: str | Path | None = None, *, download: bool = False, **sampling: Any) -> None:  # noqa: ANN401 - ImageDataModule types them
        super().__init__(**sampling)
        self.name = "mnist"
        self.root = data_root(root)
        self.download = download

    def collect(self) -> Collection:
        """Find the four arrays and divide the test images."""
        return collect_official(
            self.name,
            self.root,
            download=self.download,
            dataset="MNIST",
            folder="MNIST/raw",
            image_shape=(1, 28, 28),
            class_names=tuple("0123456789"),
        )
