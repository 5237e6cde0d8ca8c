"""The range limit against closed forms, and what it promises."""

import math

import pytest
import torch
from torch import Tensor, nn

from generators.range_limit import RangeLimit
from gibench.errors import ConfigurationError, NonFiniteError, ShapeError
from gibench.search.generator import Generator


class Linear(Generator):
    """0.5 + A z, then + shift of the class; its second stage adds B's columns."""

    def __init__(self, *, size: int = 4, latent: int = 6, classes: int | None = None) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        self.first = nn.Parameter(0.05 * torch.randn(12, latent, generator=draws))
        self.second = nn.Parameter(torch.randn(size * size * 3, 12, generator=draws))
        self.latent_shape, self.image_shape, self.num_classes = (latent,), (3, size, size), classes
        self.shift = nn.Parameter(0.1 * torch.arange(classes or 1).float())

    @property
    def depth(self) -> int:
        return 2

    def stage(self, index: int, features: Tensor, classes: Tensor | None) -> Tensor:
        if index == 0:
            return features @ self.first.T
        shift = 0 if classes is None else (classes @ self.shift)[:, None]
        return (0.5 + shift + features @ self.second.T).unflatten(1, self.image_shape)

    def matrix(self, first: int) -> Tensor:
        return (self.second @ self.first if first == 0 else self.second).detach()


def some_images(*shape: int) -> Tensor:
    return 0.35 + 0.3 * torch.rand(*shape, generator=torch.Generator().manual_seed(5))


def least_squares(images: Tensor, matrix: Tensor, center: float = 0.5) -> Tensor:
    flat = (images - center).flatten(2).double()
    answer = torch.linalg.lstsq(matrix.double(), flat.flatten(0, 1).T).solution
    return (center + (matrix.double() @ answer).T).view(images.shape).float()


def test_it_reaches_the_least_squares_projection_of_a_linear_generator() -> None:
    images = some_images(2, 3, 3, 4, 4)
    found = RangeLimit(Linear(), steps=300, restarts=2)(images)
    torch.testing.assert_close(found, least_squares(images, Linear().matrix(0)), atol=2e-4, rtol=0)


def test_a_wide_ball_of_features_reaches_the_projection_on_their_range_and_a_small_one_stays_inside() -> None:
    images = some_images(1, 2, 3, 4, 4)
    generator = Linear()
    wide = RangeLimit(generator, steps=300, restarts=1, radii=[1e6], feature_rate=0.02)(images)
    torch.testing.assert_close(wide, least_squares(images, generator.matrix(1)), atol=2e-4, rtol=0)
    latent = RangeLimit(generator, steps=300, restarts=1)(images)
    radius = 0.01
    small = RangeLimit(generator, steps=300, restarts=1, radii=[radius], feature_rate=0.02)(images)
    errors = [(answer - images).square().mean() for answer in (wide, small, latent)]
    assert errors[0] < errors[1] < errors[2]
    moved = torch.linalg.lstsq(generator.matrix(1), (small - latent).flatten(2)[0].T).solution
    assert (moved.abs().sum(0) <= radius + 1e-4).all()
    assert (moved.abs().sum(0) > 0.9 * radius).all()


def test_an_answer_depends_neither_on_the_other_images_nor_on_the_chunks() -> None:
    images = some_images(3, 2, 3, 4, 4)
    together = RangeLimit(Bent(), steps=40, restarts=3)(images)
    chunked = RangeLimit(Bent(), steps=40, restarts=3, together=4)(images)
    alone = RangeLimit(Bent(), steps=40, restarts=3)(images[1:2, 1:2])
    torch.testing.assert_close(chunked, together, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone, together[1:2, 1:2], atol=1e-5, rtol=0)
    other = RangeLimit(Bent(), steps=40, restarts=3, seed=1)(images)
    assert not torch.allclose(other, together, atol=1e-3)


def test_more_restarts_are_never_worse() -> None:
    images = some_images(4, 1, 3, 4, 4)
    errors = [
        (RangeLimit(Bent(), steps=25, restarts=count)(images) - images).square().flatten(1).mean(1)
        for count in (1, 2, 6)
    ]
    assert (errors[1] <= errors[0] + 1e-7).all()
    assert (errors[2] <= errors[1] + 1e-7).all()
    assert errors[2].sum() < errors[0].sum()


class Bent(Linear):
    """A sine in between: many local minima."""

    def stage(self, index: int, features: Tensor, classes: Tensor | None) -> Tensor:
        return super().stage(index, 0.1 * torch.sin(40 * features) if index else features, classes)


def test_a_class_conditional_generator_is_given_the_true_classes() -> None:
    generator = Linear(classes=3)
    images, labels = some_images(1, 2, 3, 4, 4), torch.tensor([[0, 2]])
    found = RangeLimit(generator, steps=300, restarts=1)(images, labels)
    for place, center in enumerate((0.5, 0.7)):
        expected = least_squares(images[:, place : place + 1], generator.matrix(0), center)
        torch.testing.assert_close(found[:, place : place + 1], expected, atol=2e-4, rtol=0)
    with pytest.raises(ConfigurationError, match="takes classes"):
        RangeLimit(generator)(images)
    with pytest.raises(ConfigurationError, match="3 classes, the labels name 3"):
        RangeLimit(generator)(images, torch.tensor([[0, 3]]))


class Reads(nn.Module):
    """The least-squares latents of `Linear`."""

    def forward(self, images: Tensor) -> Tensor:
        matrix = Linear().matrix(0)
        found: Tensor = torch.linalg.lstsq(matrix, (images - 0.5).flatten(1).T).solution.T
        return found


def test_an_encoder_is_one_start_more() -> None:
    images = some_images(2, 2, 3, 4, 4)
    projected = least_squares(images, Linear().matrix(0))
    warm = RangeLimit(Linear(), steps=1, restarts=0, encoder=Reads())
    torch.testing.assert_close(warm(images), projected, atol=1e-5, rtol=0)
    both = RangeLimit(Linear(), steps=1, restarts=2, encoder=Reads(), together=3)
    torch.testing.assert_close(both(images), projected, atol=1e-5, rtol=0)
    assert (RangeLimit(Linear(), steps=1, restarts=2)(images) - projected).abs().max() > 0.01


@pytest.mark.parametrize("size", [2, 8])
def test_other_sizes_are_resampled_only_when_asked(size: int) -> None:
    images = some_images(1, 1, 3, size, size)
    with pytest.raises(ConfigurationError, match="4 x 4 pixels, the images have"):
        RangeLimit(Linear(), steps=1)(images)
    found = RangeLimit(Linear(), steps=50, restarts=1, resample=True)(images)
    assert found.shape == images.shape
    assert (found - images).square().mean() < (images - 0.5).square().mean()


def test_settings_out_of_bounds_are_refused() -> None:
    for settings in ({"steps": 0}, {"restarts": 0}, {"rate": 0.0}, {"rate": math.nan}, {"together": 0}):
        with pytest.raises(ConfigurationError, match="at least 1"):
            RangeLimit(Linear(), **settings)
    for radii in ([1.0, 2.0], [-1.0]):
        with pytest.raises(ConfigurationError, match="at most 1 radii"):
            RangeLimit(Linear(), radii=radii)
    with pytest.raises(ConfigurationError, match="3 channels, the images have 1"):
        RangeLimit(Linear())(some_images(1, 1, 1, 4, 4))
    with pytest.raises(ShapeError):
        RangeLimit(Linear())(some_images(1, 3, 4, 4))


def test_a_generator_without_finite_images_is_an_error() -> None:
    generator = Linear()
    with torch.no_grad():
        generator.second.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="every restart"):
        RangeLimit(generator, steps=2)(some_images(1, 1, 3, 4, 4))


def test_the_fingerprint_names_weights_and_settings() -> None:
    first = RangeLimit(Linear(), steps=5)
    assert RangeLimit(Linear(), steps=5, together=3).fingerprint() == first.fingerprint()
    assert RangeLimit(Linear(), steps=6).fingerprint() != first.fingerprint()
    changed = Linear()
    with torch.no_grad():
        changed.first += 1e-3
    assert RangeLimit(changed, steps=5).fingerprint() != first.fingerprint()
