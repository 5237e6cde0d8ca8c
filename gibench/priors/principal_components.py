"""Gaussian images: their principal components, and the prior that these make (Tipping and Bishop, 1999)."""

import hashlib
import math
from typing import Any, NamedTuple, Protocol, Self, cast

import torch
from lightning import LightningDataModule
from scipy.linalg import eigh
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.needs import Needs
from gibench.priors.base import Prior
from gibench.seeding import generator
from gibench.types import Observation

CHUNK = 2000  # images
AUXILIARY = Needs(prior_data=("out_of_distribution", "in_distribution"))
"""What images from elsewhere need."""


class _Splits(Protocol):
    """What is asked of a data set: its prior split, images (N, C, H, W) in [0, 1], labels and names."""

    image_shape: tuple[int, int, int]

    def split(self, name: str) -> tuple[Tensor, Any, Any]: ...


class Components(NamedTuple):
    r"""The mean of images and the directions in which they vary most, in pixels.

    mean: (D,), D = C H W. directions: (K, D), orthonormal rows, by falling variance. deviations: (K,), the standard
    deviation along each. rest: () standard deviation along any of the other D - K directions, on average.
    """

    mean: Tensor
    directions: Tensor
    deviations: Tensor
    rest: Tensor

    def to(self, like: Tensor) -> Self:
        """Return them in the type and on the device of a tensor."""
        return type(self)(*(each.to(like) for each in self))


class PrincipalAxes:
    """The principal components of the attacker's own images, fitted when they are first asked for.

    Their covariance is summed up and decomposed in float64, on the CPU; where there are fewer images than pixels, from
    the images' inner products. The same images give the same components, which are kept for all who ask for them.

    Args:
        auxiliary: any data set of `gibench.data`, by class path. Its prior split is used, which shares no image with
            those that are attacked (rule R3).
        components: how many, K; less than pixels, and less than images.
        images: how many images of the split are used, at most; None uses all.

    Raises:
        ConfigurationError: for numbers that are not positive, or data without a prior split.
    """

    def __init__(self, auxiliary: LightningDataModule, *, components: int, images: int | None) -> None:
        if not callable(getattr(auxiliary, "split", None)):
            raise ConfigurationError(
                f"auxiliary is {type(auxiliary).__name__}, which has no prior split; name a data set of gibench.data."
            )
        if components < 1 or (images is not None and images < 2):
            raise ConfigurationError(
                f"components is {components} and images {images}; take at least 1 component, of at least 2 images."
            )
        self.auxiliary = cast(_Splits, auxiliary)
        self.components = components
        self.images = images
        self._fitted: Components | None = None  # in float64
        self._cast: Components | None = None  # as it was asked for last

    def check(self, observation: Observation) -> None:
        """Raise ConfigurationError unless the images are like the victim's, and there are enough of them; fit."""
        if self.auxiliary.image_shape != observation.image_shape:
            raise ConfigurationError(
                f"the auxiliary data has images {self.auxiliary.image_shape}, the victim takes "
                f"{observation.image_shape}; name data that fits."
            )
        self.like(next(iter(observation.update.values())))

    def like(self, tensor: Tensor) -> Components:
        """Return the components in the type and on the device of a tensor."""
        if self._fitted is None:
            self._fitted = _fit(self._chosen(), self.components)
        if self._cast is None or self._cast.mean.dtype != tensor.dtype or self._cast.mean.device != tensor.device:
            self._cast = self._fitted.to(tensor)
        return self._cast

    def _chosen(self) -> Tensor:
        images = self.auxiliary.split("prior")[0].flatten(1)
        if self.images is not None and self.images < len(images):
            order = torch.randperm(len(images), generator=generator("principal components"))
            images = images[order[: self.images].sort().values]
        if self.components >= min(images.shape):
            raise ConfigurationError(
                f"{len(images)} images of {images.shape[1]} numbers have fewer than {self.components} components to "
                "tell apart; take fewer components, or more images."
            )
        return images


_KEPT: dict[tuple[str, int], Components] = {}


def _fit(images: Tensor, components: int) -> Components:
    """Decompose images (N, D)."""
    key = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest(), components
    if key in _KEPT:
        return _KEPT[key]
    count, size = images.shape
    mean = images.double().mean(0) if count <= CHUNK else images.mean(0, dtype=torch.float64)
    if count > size:
        covariance = torch.zeros(size, size, dtype=torch.float64)
        for part in images.split(CHUNK):
            centered = part.double() - mean
            covariance += centered.T @ centered / count
    else:
        centered = images.double() - mean
        covariance = centered @ centered.T / count
    last = len(covariance) - 1
    found = eigh(covariance.numpy(), subset_by_index=[last + 1 - components, last])
    variances, vectors = (torch.from_numpy(each).flip(-1) for each in found)
    if not variances[-1] > 1e-12 * variances[0]:
        raise ConfigurationError(
            f"the images vary in fewer than {components} directions; take fewer components, or more images."
        )
    directions = vectors.T if count > size else vectors.T @ centered / (count * variances[:, None]).sqrt()
    rest = (covariance.trace() - variances.sum()).clamp_min(0) / (size - components)
    # What varies nowhere but in the components still has a density.
    rest = rest.clamp_min(1e-12 * float(variances[-1]))
    fitted = Components(mean, directions.contiguous(), variances.sqrt(), rest.sqrt())
    _KEPT[key] = fitted
    return fitted


class ProbabilisticPCA(Prior):
    r"""-log N(x; mean, C) for each image, with the covariance C of other images, up to a constant.

    .. math:: R(x) = \frac{w}{2} \sum_b \Big( \sum_{k \le K} \frac{(e_k^T (x_b - m))^2}{\lambda_k}
        + \frac{\lVert (I - E E^T)(x_b - m) \rVert^2}{s^2} \Big)

    with the first K principal components of the attacker's images and, along all other directions, their mean variance
    s^2: the maximum-likelihood fit of probabilistic PCA (Tipping and Bishop, J. R. Stat. Soc. B 61, 1999). It is the
    Gaussian prior of natural images: smooth ones, and it is quadratic, so that a least-squares search takes it exactly.
    On images that are themselves combinations of these components it is the standard normal prior of the coefficients,
    see `gibench.search.PrincipalComponents`.

    Args:
        auxiliary: the attacker's own data, of the victim's image shape: any data set of `gibench.data`, by class path.
            Its prior split is used, which shares no image with those that are attacked (rule R3).
        components: K.
        images: of the split that are used, at most; None uses all.
        weight: w, at least 0; 1 is Bayes' rule with `Gaussian(sigma=...)` at the noise's own sigma.

    Raises:
        ConfigurationError: when the data is no data set, or has other images than the victim, or too few.
        ThreatModelError: when the threat model grants no other images (`prior_data`).
    """

    needs = AUXILIARY

    def __init__(
        self,
        *,
        auxiliary: LightningDataModule,
        components: int = 500,
        images: int | None = 10_000,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not weight >= 0:
            raise ConfigurationError(f"the weight of the probabilistic PCA is {weight}; it must be at least 0.")
        self.axes = PrincipalAxes(auxiliary, components=components, images=images)
        self.weight = weight

    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`."""
        return self.residuals(images, observation).square().sum(1) / 2

    def residuals(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`: what has covariance 1 under the prior, times sqrt(w); exactly."""
        mean, directions, deviations, rest = self.axes.like(images)
        away = images.flatten(2) - mean
        along = away @ directions.T
        across = (away - along @ directions) / rest
        return math.sqrt(self.weight) * torch.cat([along / deviations, across], 2).flatten(1)

    def check(self, observation: Observation) -> None:
        """See `Prior`."""
        self.axes.check(observation)
