"""Floors (rule R5): what an "attack" scores that has never seen the update; over the prior split, but for oracles."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gibench.errors import ShapeError
from gibench.seeding import derive
from gibench.types import Batch, check_images

MEAN_IMAGE = "floor: mean image"
CLASS_MEAN = "floor: class mean"
RANDOM_IMAGE = "floor: random image"
NEAREST_IMAGE = "floor: nearest image (oracle)"
BATCH_MEAN = "floor: mean of the private batch (oracle)"

_VALUES_AT_ONCE = 2**23  # of the prior, as float32: 32 MiB


class Floors:
    """Answers without content, for any private batch, to be matched and scored like an attack's.

    `mean`: the mean image, (C, H, W), float32 in [0, 1]; a failed reconstruction scores as this one (rule R7).
    `class_means`: (K, C, H, W); the mean image for a class of which the prior split has no image.

    Args:
        prior_images: (N, C, H, W), uint8 or floating point in [0, 1]; kept as they are (50,000 of CIFAR-10: 154 MB).
        prior_labels: (N,), integers from 0.
        seed: of the random images.

    Raises:
        ShapeError, ImageRangeError, NonFiniteError: for tensors that break the lines above.
    """

    def __init__(self, prior_images: Tensor, prior_labels: Tensor, *, seed: int) -> None:
        if prior_images.ndim != 4 or 0 in prior_images.shape or prior_labels.shape != prior_images.shape[:1]:
            shapes = f"{tuple(prior_images.shape)} and {tuple(prior_labels.shape)}"
            raise ShapeError(f"prior images and labels have shapes {shapes}; pass (N, C, H, W) and (N,), N at least 1.")
        if prior_images.dtype != torch.uint8:
            check_images(prior_images[None])
        if prior_labels.is_floating_point() or prior_labels.min() < 0:
            raise ShapeError("prior labels must be class indices, integers from 0.")
        self._images = prior_images
        self._seed = seed
        self._squared_norms, self.mean, self.class_means = self._statistics(prior_labels.long())

    def __call__(self, batch: Batch, *, labels_known: bool, nearest: bool = True) -> dict[str, Tensor]:
        """Name of each floor -> its images (U, B, C, H, W).

        The class mean only where the attacker knows the labels, the mean of the private batch only where B > 1. The
        nearest image costs a product with the whole prior split; `nearest` leaves it out.

        Raises:
            ShapeError: when the images of the batch are not of the prior's shape.
        """
        if batch.images.shape[2:] != self._images.shape[1:]:
            shapes = f"{tuple(batch.images.shape[2:])} and {tuple(self._images.shape[1:])}"
            raise ShapeError(f"private and prior images have shapes {shapes}; take both from one data set.")
        floors = {
            MEAN_IMAGE: self.mean_image(batch),
            CLASS_MEAN: self.class_mean(batch),
            RANDOM_IMAGE: self.random_image(batch),
        }
        if nearest:
            floors[NEAREST_IMAGE] = self.nearest_image(batch)
        if not labels_known:
            del floors[CLASS_MEAN]
        if batch.images.shape[1] > 1:
            floors[BATCH_MEAN] = self.batch_mean(batch)
        return floors

    def mean_image(self, batch: Batch) -> Tensor:
        """The mean of the prior split, for each private image."""
        return self.mean.to(batch.images).expand_as(batch.images).clone()

    def class_mean(self, batch: Batch) -> Tensor:
        """The mean of the prior images that have the private image's label."""
        unknown = len(self.class_means)
        means = torch.cat([self.class_means, self.mean[None]])
        return means[batch.labels.cpu().clamp(max=unknown)].to(batch.images)

    def random_image(self, batch: Batch) -> Tensor:
        """One image of the prior split, drawn by the seed and the private image's id (rule R17)."""
        rows = [[derive(self._seed, RANDOM_IMAGE, name) % len(self._images) for name in row] for row in batch.image_ids]
        return self._select(torch.tensor(rows)).to(batch.images)

    @torch.no_grad()
    def nearest_image(self, batch: Batch) -> Tensor:
        """The prior image with the smallest MSE to the private one: an oracle, the best that retrieval can do."""
        queries = batch.images.to("cpu", torch.float32).flatten(2).flatten(0, 1)
        smallest = torch.full((len(queries),), torch.inf)
        nearest = torch.zeros(len(queries), dtype=torch.int64)
        with torch.autocast("cpu", enabled=False):  # half precision would name another neighbor
            for rows, chunk in self._chunks():
                costs, places = (self._squared_norms[rows] - 2 * queries @ chunk.T).min(1)
                nearest = torch.where(costs < smallest, places + rows.start, nearest)
                smallest = torch.minimum(costs, smallest)
        return self._select(nearest.view(batch.labels.shape)).to(batch.images)

    def batch_mean(self, batch: Batch) -> Tensor:
        """The mean of the private batch, for each of its images: an oracle, what an attack that mixes them reaches."""
        return batch.images.mean(1, keepdim=True).expand_as(batch.images).clone()

    def _statistics(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared norms (N,), the mean image, and the class means, in one pass."""
        shape = self._images.shape[1:]
        counts = labels.bincount()
        sums = torch.zeros(len(counts), shape.numel(), dtype=torch.float64)
        norms = []
        for rows, chunk in self._chunks():
            sums.index_add_(0, labels[rows], chunk.double())
            norms.append(chunk.square().sum(1))
        mean = sums.sum(0) / len(labels)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), mean)
        return torch.cat(norms), mean.float().view(shape), means.float().view(-1, *shape)

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """The prior split in parts of bounded memory: rows, images (rows, C * H * W), float32 in [0, 1]."""
        size = max(1, _VALUES_AT_ONCE // self._images[0].numel())
        for start in range(0, len(self._images), size):
            rows = slice(start, start + size)
            yield rows, _to_float(self._images[rows]).flatten(1)

    def _select(self, rows: Tensor) -> Tensor:
        return _to_float(self._images[rows])


def _to_float(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()
