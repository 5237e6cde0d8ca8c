"""The contract of generators, one row of the table per model; then what holds for one of them alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from generator_table import TABLE, inputs, made
from references.dcgan import face_dcgan
from safetensors.torch import load_file
from torch.func import functional_call, jvp, stack_module_state, vmap

from generators import DCGAN, DCGANDiscriminator, VAEDecoder, VAEEncoder
from gibench.errors import ConfigurationError


@pytest.fixture(params=TABLE)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_stages_chain_from_latent_to_image(name: str) -> None:
    generator, shapes = made(name), TABLE[name].shapes
    features, classes = inputs(generator)
    images = generator(features, classes)
    assert generator.depth == len(shapes) - 1
    for index, shape in enumerate(shapes):
        assert features.shape == (3, *shape)
        assert generator.features_shape(index) == shape
        torch.testing.assert_close(generator(features, classes, first=index), images, rtol=0, atol=0)
        if index < generator.depth:
            features = generator.stage(index, features, classes)
    assert generator.image_shape == shapes[-1]
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.01
    with pytest.raises(ConfigurationError, match="no stage"):
        generator.features_shape(generator.depth + 1)


def test_rows_are_independent_and_the_same_each_time(name: str) -> None:
    generator = made(name)
    latents, classes = inputs(generator)
    images = generator(latents, classes)
    assert torch.equal(generator(latents, classes), images)
    for row in range(len(latents)):
        alone = generator(latents[row : row + 1], None if classes is None else classes[row : row + 1])
        torch.testing.assert_close(alone, images[row : row + 1])
    assert (images[0] - images[1]).abs().max() > 1e-3


def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    """Forward mode, and reverse mode twice, from each stage."""
    generator = made(name)
    start, classes = inputs(generator)
    step = 1e-6
    for first in range(generator.depth):
        features = generator(start, classes, last=first).detach()
        along = torch.randn(features.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

        def draw(point: torch.Tensor, first: int = first) -> torch.Tensor:
            return generator(point, classes, first=first)

        def slope(point: torch.Tensor, create: bool = False, draw: Any = draw) -> torch.Tensor:
            point = point if point.requires_grad else point.requires_grad_()
            return torch.autograd.grad((5 * draw(point)).sin().sum(), point, create_graph=create)[0]

        expected = (draw(features + step * along) - draw(features - step * along)) / (2 * step)
        found = jvp(draw, (features,), (along,))[1]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
        bent = (slope((features + step * along).detach()) - slope((features - step * along).detach())) / (2 * step)
        point = features.clone().requires_grad_()
        (found,) = torch.autograd.grad((slope(point, create=True) * along).sum(), point)
        assert found.abs().max() > 0
        torch.testing.assert_close(found, bent, rtol=1e-4, atol=1e-5 * float(found.abs().max()))


def test_other_weights_for_each_row(name: str) -> None:
    """What GIAS needs: U sets of weights in one call."""
    several = [made(name) for _ in range(2)]
    with torch.no_grad():
        for parameter in several[1].parameters():
            parameter.mul_(1.1)
    latents, classes = inputs(several[0], count=2)
    parameters, buffers = stack_module_state(several)

    def draw(weights: Any, state: Any, latent: torch.Tensor) -> torch.Tensor:
        condition = None if classes is None else classes[:1]
        return functional_call(several[0], (weights, state), (latent[None], condition))[0]

    found = vmap(draw)(parameters, buffers, latents)
    for row, generator in enumerate(several):
        torch.testing.assert_close(
            found[row], generator(latents[row : row + 1], None if classes is None else classes[:1])[0]
        )


def test_the_published_weights_of_faces_draw_what_pytorchs_example_does(weights_root: Path) -> None:
    weights = load_file(weights_root / "dcgan64_digiface_generator.safetensors")
    generator = DCGAN(image_shape=(3, 64, 64))
    generator.load_state_dict(weights)  # strict
    latents = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = generator.eval()(latents)
    torch.testing.assert_close(images, face_dcgan(weights, latents), atol=1e-5, rtol=0)
    assert images.std() > 0.1


@pytest.mark.parametrize(
    ("network", "settings"),
    [
        (DCGAN, {"image_shape": (3, 28, 28)}),
        (DCGAN, {"image_shape": (3, 32, 64)}),
        (DCGAN, {"latent": 0}),
        (DCGAN, {"width": 0}),
        (VAEDecoder, {"widths": (4, 8)}),
        (VAEDecoder, {"widths": (4, 8, 6, 8)}),
        (VAEEncoder, {"image_shape": (3, 4, 4)}),
        (DCGANDiscriminator, {"normalization": "layer"}),
        (DCGANDiscriminator, {"image_shape": (3, 33, 33)}),
    ],
)
def test_bad_settings(network: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        network(**settings)


def test_a_spectral_norm_is_one() -> None:
    discriminator = DCGANDiscriminator(image_shape=(3, 8, 8), width=4, normalization="spectral")
    for _ in range(50):
        discriminator(torch.rand(2, 3, 8, 8))
    weights = [module.weight for module in discriminator.main if isinstance(module, torch.nn.Conv2d)]
    assert len(weights) == 2
    for weight in weights:
        assert float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)) == pytest.approx(1, abs=1e-3)
