"""What the errors of a reconstruction look like: mixtures, wrong pixels, blur and noise, and who it would be taken for.

PSNR says how far a reconstruction is from its image, not in which direction. These say whether it is a blend of the
batch or of its class, whether few pixels are wrong or all, and whether it is smoother or rougher than the truth.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gibench.errors import ShapeError
from gibench.metrics.image_quality import psnr
from gibench.priors.total_variation import total_variation

BAD = 0.1
"""A pixel is bad where a channel is off by more than this, in units of the range; a tenth is easily seen."""

_VALUES_AT_ONCE = 2**23  # of the lineup, as float32: 32 MiB


class PictureErrors(NamedTuple):
    """One value per image, in the order of `images.flatten(0, 1)`; None where it is not defined.

    psnr_mixture: PSNR in dB against the mean of the private batch; None at B = 1.
    psnr_class_mean: PSNR in dB against the class mean of the prior split; None where no class means are given.
    bad_pixels: share of the H x W pixels of which a channel is off by more than `BAD`.
    tv_ratio: TV(reconstruction) / TV(private image), anisotropic: below 1 it is blurred, above 1 noisy; None where the
        private image is constant.
    identified: whether no other image of the lineup is closer to the reconstruction than its own; None without lineup.
    """

    psnr_mixture: list[float | None]
    psnr_class_mean: list[float | None]
    bad_pixels: list[float | None]
    tv_ratio: list[float | None]
    identified: list[bool | None]


class ErrorsInPictures:
    r"""Measure matched reconstructions beside what they might be mistaken for.

    .. math:: \text{bad} = \frac{1}{HW} \#\{(i, j): \max_c |\hat x_{cij} - x_{cij}| > 0.1\}, \qquad
              \text{ratio} = TV(\hat x) / TV(x)

    The mixture is the control for batches with repeated labels: an attack that returns the mean of the batch for each
    image has recovered none. `identified` is the image identifiability precision of "See through gradients" (Yin et
    al., CVPR 2021), in pixels; theirs compares features of a network, and only images of one class.

    Args:
        class_means: (K, C, H, W), of the prior split; a label from K on has none.
        lineup: the images among which one may be confused with another; all images of the attacked split, so that the
            answer depends neither on how many are attacked nor on their order.
    """

    def __init__(self, *, class_means: Tensor | None = None, lineup: "Lineup | None" = None) -> None:
        self.class_means = class_means
        self.lineup = lineup

    @torch.no_grad()
    def __call__(
        self, images: Tensor, private: Tensor, labels: Tensor, image_ids: Sequence[Sequence[str]]
    ) -> PictureErrors:
        """Measure images (U, B, C, H, W), matched to `private` of the same shape, both finite and in [0, 1].

        Args:
            images: the reconstructions.
            private: what they are held against.
            labels: (U, B), of the private images.
            image_ids: U sequences of B names, by which the lineup knows the private images.

        Raises:
            ShapeError: unless both are of one shape with five dimensions.
        """
        if images.ndim != 5 or images.shape != private.shape:
            shapes = f"{tuple(images.shape)} and {tuple(private.shape)}"
            raise ShapeError(f"reconstructed and private images have shapes {shapes}; pass the same (U, B, C, H, W).")
        found, truth = images.cpu().double(), private.cpu().double()
        nothing: list[Any] = [None] * (found.shape[0] * found.shape[1])
        names = [name for row in image_ids for name in row]
        return PictureErrors(
            psnr_mixture=nothing if found.shape[1] == 1 else _psnr(found, truth.mean(1, keepdim=True).expand_as(truth)),
            psnr_class_mean=nothing if self.class_means is None else _to_classes(found, labels, self.class_means),
            bad_pixels=bad_pixels(found, truth).flatten().tolist(),
            tv_ratio=[_finite(ratio) for ratio in tv_ratio(found, truth).flatten().tolist()],
            identified=nothing if self.lineup is None else self.lineup(found, truth, names),
        )


def bad_pixels(images: Tensor, private: Tensor) -> Tensor:
    """Share of the pixels of (U, B, C, H, W) of which a channel is off by more than `BAD`: (U, B)."""
    return ((images - private).abs().amax(-3) > BAD).to(images.dtype).mean((-2, -1))


def tv_ratio(images: Tensor, private: Tensor) -> Tensor:
    """Anisotropic TV of each reconstruction over that of its image, both (U, B, C, H, W): (U, B)."""
    return _tv(images) / _tv(private)


class Lineup:
    """The images of a split, among which a reconstruction points at one.

    Args:
        images: (N, C, H, W), uint8 or floating point in [0, 1]; kept as they are.
        ids: N names.

    Raises:
        ShapeError: for other shapes.
    """

    def __init__(self, images: Tensor, ids: Sequence[str]) -> None:
        if images.ndim != 4 or 0 in images.shape or len(images) != len(ids):
            raise ShapeError(f"lineup images have shape {tuple(images.shape)} for {len(ids)} ids; pass (N, C, H, W).")
        self._images = images
        self._rows: Mapping[str, int] = {name: row for row, name in enumerate(ids)}
        self._squares = torch.cat([others.square().sum(1) for _, others in self._chunks()])

    def __call__(self, images: Tensor, private: Tensor, ids: Sequence[str]) -> list[bool | None]:
        """Say of each reconstruction (U, B, ...) whether all images but its own are at least as far away from it.

        Its own stands in the lineup as `private` has it, which may be transformed (ATS).
        """
        queries, truth = (each.cpu().float().flatten(2).flatten(0, 1) for each in (images, private))
        own = torch.tensor([self._rows.get(name, -1) for name in ids])
        norms = queries.square().sum(1)
        least = torch.full((len(queries),), torch.inf)
        with torch.autocast("cpu", enabled=False):
            for rows, others in self._chunks():
                distances = norms[:, None] - 2 * queries @ others.T + self._squares[rows]
                inside = (own >= rows.start) & (own < rows.start + len(others))
                distances[inside, own[inside] - rows.start] = torch.inf
                least = torch.minimum(least, distances.amin(1))
        answers: list[bool | None] = ((queries - truth).square().sum(1) <= least).tolist()
        return answers

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """The images in parts of bounded memory: rows, and (rows, C * H * W), float32 in [0, 1]."""
        size = max(1, _VALUES_AT_ONCE // self._images[0].numel())
        for start in range(0, len(self._images), size):
            rows = slice(start, start + size)
            others = self._images[rows].flatten(1)
            yield rows, others.float() / 255 if others.dtype == torch.uint8 else others.float()


def _psnr(images: Tensor, others: Tensor) -> list[float | None]:
    values: list[float | None] = psnr(images.flatten(0, 1), others.flatten(0, 1)).tolist()
    return values


def _to_classes(images: Tensor, labels: Tensor, class_means: Tensor) -> list[float | None]:
    means = class_means.to(images)
    classes = labels.cpu().flatten()
    values = _psnr(images, means[classes.clamp(max=len(means) - 1)].view_as(images))
    return [value if label < len(means) else None for value, label in zip(values, classes.tolist(), strict=True)]


def _tv(images: Tensor) -> Tensor:
    each = total_variation(images.flatten(0, 1)[:, None])
    return each.view(images.shape[:2])


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None  # of a constant image: infinite, or 0 / 0
