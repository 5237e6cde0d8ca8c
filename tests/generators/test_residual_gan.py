"""The class-conditional residual GAN and its discriminator, against plain formulas."""

import copy

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp
from torch.nn import functional as F

from generators.card import build
from generators.discriminators import DISCRIMINATORS, ProjectionDiscriminator
from generators.residual_gan import ResidualGAN
from gibench.errors import ConfigurationError


def small(**settings: int) -> ResidualGAN:
    torch.manual_seed(0)
    made = ResidualGAN(image_shape=(3, 16, 16), **{"num_classes": 4, "latent": 8, "width": 8} | settings)
    for name, weight in made.named_parameters():
        if "scale" in name or "shift" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return made


def latents(count: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(1))


def test_it_has_the_published_size_and_a_stage_for_each_block() -> None:
    """SNGAN's for CIFAR-10, with a scale and a shift for each class."""
    made = ResidualGAN(num_classes=10).eval()
    read = 128 * 4096 + 4096
    block = 2 * (256 * 256 * 9 + 256) + (256 * 256 + 256) + 2 * 2 * 10 * 256
    assert sum(weight.numel() for weight in made.parameters()) == read + 3 * block + 2 * 256 + 256 * 27 + 3
    shapes = [tuple(made.features_shape(stage)) for stage in range(made.depth + 1)]
    assert shapes == [(128,), (256, 4, 4), (256, 8, 8), (256, 16, 16), (256, 32, 32), (3, 32, 32)]


def test_a_block_is_what_its_formula_says() -> None:
    """Against a slow version that enlarges before every convolution, with batch statistics by hand."""
    made, count = small(), 6
    classes = torch.randn(count, 4, generator=torch.Generator().manual_seed(2)).softmax(1)
    block, maps = made.blocks[0], made.stage(0, latents(count), classes)

    def normalized(values: Tensor, norm: torch.nn.Module) -> Tensor:
        mean, variance = values.mean((0, 2, 3), keepdim=True), values.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (classes @ part.weight.T for part in (norm.scale, norm.shift))
        return (1 + scale)[:, :, None, None] * (values - mean) / (variance + 1e-5).sqrt() + shift[:, :, None, None]

    def doubled(values: Tensor) -> Tensor:
        return values.repeat_interleave(2, 2).repeat_interleave(2, 3)

    inner = block.first(doubled(F.relu(normalized(maps, block.first_norm))))
    inner = block.second(F.relu(normalized(inner, block.second_norm)))
    torch.testing.assert_close(block(maps, classes), inner + block.skip(doubled(maps)), atol=1e-5, rtol=1e-5)


def test_classes_decide_the_image_and_mix_by_their_probabilities() -> None:
    made = small().eval()
    one, other = (F.one_hot(torch.full((3,), row), 4).float() for row in (0, 3))
    assert (made(latents(3), one) - made(latents(3), other)).abs().max() > 1e-3
    norm = made.blocks[0].first_norm
    maps = made.stage(0, latents(3), one)
    torch.testing.assert_close(norm(maps, (one + other) / 2), (norm(maps, one) + norm(maps, other)) / 2)
    with pytest.raises(ConfigurationError, match=r"takes classes; pass probabilities \(N, 4\)"):
        made(latents(3))


def test_it_is_differentiable_twice_in_latents_and_classes() -> None:
    made, start = small().double().eval(), latents(2).double()
    mixed = torch.full((2, 4), 0.25, dtype=torch.float64)

    def cost(drawn: Tensor, classes: Tensor) -> Tensor:
        return (made(drawn, classes) - 0.2).square().sum()

    for argument in (0, 1):
        point = (start, mixed)
        direction = torch.randn_like(point[argument])

        def slope(value: Tensor, argument: int = argument) -> Tensor:
            arguments = (value, mixed) if argument == 0 else (start, value)
            found: Tensor = grad(cost, argnums=argument)(*arguments)
            return found

        _, forward_over_reverse = jvp(slope, (point[argument],), (direction,))
        step = 1e-8  # few ReLUs turn within
        differences = (slope(point[argument] + step * direction) - slope(point[argument] - step * direction)) / 2 / step
        torch.testing.assert_close(forward_over_reverse, differences, atol=1e-3, rtol=1e-3)


def discriminator() -> ProjectionDiscriminator:
    torch.manual_seed(0)
    return ProjectionDiscriminator(image_shape=(3, 16, 16), num_classes=4, width=8)


def test_the_score_is_linear_in_the_class_probabilities_plus_a_part_without() -> None:
    judge = discriminator().eval()
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    scores = torch.stack([judge(images, F.one_hot(torch.full((5,), row), 4).float()) for row in range(4)])
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    torch.testing.assert_close(judge(images, probabilities.expand(5, 4)), probabilities @ scores)
    features = F.relu(judge.blocks(2 * images - 1)).sum((2, 3))
    torch.testing.assert_close(
        scores[2] - scores[1], features @ (judge.embedding.weight[:, 2] - judge.embedding.weight[:, 1])
    )
    with pytest.raises(ConfigurationError, match="takes classes"):
        judge(images)


def test_the_spectral_norms_settle_at_one() -> None:
    judge = discriminator()
    images, classes = torch.rand(4, 3, 16, 16), torch.eye(4)
    for _ in range(60):
        judge(images, classes)
    judge.eval()
    layers = [layer for layer in judge.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(layers) == 9
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, abs=0.02)


def test_a_few_steps_of_the_hinge_loss_tell_real_from_fake() -> None:
    judge, made = discriminator(), small()
    classes = torch.eye(4).repeat(4, 1)
    real = 0.5 + 0.3 * torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3, betas=(0.0, 0.9))
    before = copy.deepcopy(judge.state_dict())
    for _ in range(40):
        fake = made(latents(16), classes).detach()
        loss = F.relu(1 - judge(real, classes)).mean() + F.relu(1 + judge(fake, classes)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert judge(real, classes).mean() > judge(fake, classes).mean() + 0.5
    assert any(not torch.equal(before[name], value) for name, value in judge.state_dict().items())


def test_bad_settings_are_one_clear_line() -> None:
    assert DISCRIMINATORS["projection"] is ProjectionDiscriminator
    with pytest.raises(ConfigurationError, match="num_classes is 0"):
        ResidualGAN(num_classes=0)
    with pytest.raises(ConfigurationError, match="width is 0"):
        ProjectionDiscriminator(num_classes=3, width=0)
    with pytest.raises(ConfigurationError, match="images are"):
        ResidualGAN(image_shape=(3, 24, 24), num_classes=2)
    with pytest.raises(ConfigurationError, match="num_classes"):
        build("residual_gan", {"width": 8})
