"""Layers one at a time: every one under `vmap`, and the convolutions that the rules are made of."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import updates as reference
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models.convnext import LayerNorm2d

from gibench.engine.convolution import Geometry, by_unfolding, frozen_convolution, weight_gradients
from gibench.engine.gradient import LocalGradient
from gibench.victims import Victim, seeded


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def tokens(inputs: Tensor) -> Tensor:
    return inputs.flatten(2).mT


def einsum_attention(inputs: Tensor) -> Tensor:
    rows = tokens(inputs)
    weights = torch.einsum("nic,njc->nij", rows, rows).softmax(-1)
    return torch.einsum("nij,njc->nic", weights, rows)


def math_attention(inputs: Tensor) -> Tensor:
    rows = tokens(inputs)[:, None]
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(rows, 1.5 * rows, 0.5 * rows)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "instance norm": lambda: nn.InstanceNorm2d(4),
    "instance norm, running": lambda: nn.InstanceNorm2d(4, track_running_stats=True),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "group norm of one group": lambda: nn.GroupNorm(1, 4),
    "group norm, no weight": lambda: nn.GroupNorm(2, 4, affine=False),
    "layer norm, no weight": lambda: nn.LayerNorm(6, elementwise_affine=False),
    "RMS norm": lambda: nn.RMSNorm([4, 6, 6]),
    "batch norm, running": lambda: nn.BatchNorm2d(4),
    "local response": lambda: nn.LocalResponseNorm(3),
    "dropout": lambda: nn.Dropout(0.5),
    "average pool": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "max pool": lambda: nn.MaxPool2d(3, 2, 1),
    "adaptive average pool": lambda: nn.AdaptiveAvgPool2d(4),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool2d(4),
    "power pool": lambda: nn.LPPool2d(2, 2),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "bicubic": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "pixel shuffle": lambda: nn.PixelShuffle(2),
    "softmax": lambda: nn.Softmax(1),
    "GLU": lambda: nn.GLU(1),
    "PReLU": lambda: nn.PReLU(4),
    "transposed convolution": lambda: nn.ConvTranspose2d(4, 4, 3, 2, groups=2, dilation=2),
    "circular convolution": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="circular"),
    "einsum attention": lambda: Call(einsum_attention),
    "math attention": lambda: Call(math_attention),
    "layer norm": lambda: nn.LayerNorm(6),
    "layer norm, no bias": lambda: nn.LayerNorm([4, 6, 6], bias=False),
    "layer norm of ConvNeXt": lambda: LayerNorm2d(4),
    "batch norm, own statistics": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "instance norm, weight": lambda: nn.InstanceNorm2d(4, affine=True),
}


def victim_with(layer: Callable[[], nn.Module]) -> Victim:
    def network() -> nn.Module:
        body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), layer(), nn.Flatten()).eval()
        width = body(torch.rand(2, 3, 6, 6)).shape[1]
        body.extend([nn.Tanh(), nn.Linear(width, 5)])
        for parameter in body.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        return body

    facts = {"architecture": "one layer", "num_classes": 5, "initialization": "random"}
    return Victim(seeded(network, 0), image_shape=(3, 6, 6), **facts).double().eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", LAYERS)
def test_the_generic_way_differentiates_twice(name: str) -> None:
    """The image derivative of a random function of the update, against plain autograd."""
    victim = victim_with(LAYERS[name])
    source = torch.Generator().manual_seed(1)
    images = torch.rand(3, 2, 3, 6, 6, generator=source, dtype=torch.float64).requires_grad_()
    labels = torch.randint(5, (3, 2), generator=source)
    expected, found = reference.updates(victim, images, labels), LocalGradient(victim)(images, labels)
    assert found.keys() == expected.keys()
    directions = {key: torch.randn(value.shape, generator=source, dtype=value.dtype) for key, value in expected.items()}
    derivatives = []
    for update in (expected, found):
        total = torch.stack([(update[key].square() * direction).sum() for key, direction in directions.items()]).sum()
        derivatives.append(torch.autograd.grad(total, images)[0])
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)
    assert (derivatives[1] - derivatives[0]).norm() < 1e-9 * derivatives[0].norm()


class Convolution:
    """A random convolution of one, two or three axes on U = 2 updates of B = 1 or 2 samples."""

    def __init__(self, draw: Callable[[st.SearchStrategy[int]], int]) -> None:
        axes, kernel = draw(st.integers(1, 3)), []
        self.groups, self.updates, self.size = draw(st.integers(1, 2)), 2, draw(st.integers(1, 2))
        space = [draw(st.integers(2, 4)) for _ in range(axes)]
        stride, dilation = ([draw(st.integers(1, 2)) for _ in space] for _ in range(2))
        padding = [draw(st.integers(0, 1)) for _ in space]
        for size, step, sides in zip(space, dilation, padding, strict=True):
            kernel.append(draw(st.integers(1, 1 + (size + 2 * sides - 1) // step)))
        self.geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), self.groups)
        self.shape = torch.Size([self.groups, draw(st.integers(1, 2)), *kernel])
        self.inputs = torch.randn(2 * self.size, self.groups * self.shape[1], *space, dtype=torch.float64)
        self.weight = torch.randn(self.shape, dtype=torch.float64)

    def native(self, inputs: Tensor, weight: Tensor) -> Tensor:
        kind = (F.conv1d, F.conv2d, F.conv3d)[len(self.shape) - 3]
        stride, padding, dilation, groups = self.geometry
        return kind(inputs, weight, None, stride, padding, dilation, groups)


@st.composite
def convolutions(draw: Callable[[st.SearchStrategy[int]], int]) -> Convolution:
    torch.manual_seed(draw(st.integers(0, 100)))
    return Convolution(draw)


@settings(max_examples=20)
@given(convolutions())
def test_frozen_convolution(case: Convolution) -> None:
    """Its value is PyTorch's, and both its derivatives are finite differences."""
    bias, inputs = torch.randn(case.groups, dtype=torch.float64), case.inputs.requires_grad_()

    def frozen(values: Tensor) -> Tensor:
        return frozen_convolution(values, case.weight, bias, case.geometry)

    wide = bias.reshape(-1, *[1] * (inputs.ndim - 2))
    torch.testing.assert_close(frozen(inputs), case.native(inputs, case.weight) + wide)
    assert torch.autograd.gradcheck(frozen, (inputs,), fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda values: frozen(values).sin(), (inputs,), fast_mode=True)
    delta = torch.randn_like(frozen(inputs)).requires_grad_()

    def derivative(delta: Tensor) -> Tensor:
        return torch.autograd.grad(frozen(inputs), inputs, delta, create_graph=True)[0]

    assert torch.autograd.gradcheck(derivative, (delta,), fast_mode=True)


@settings(max_examples=20)
@given(convolutions())
def test_weight_gradients(case: Convolution) -> None:
    """Each update's is plain autograd's on its own samples; derivatives are finite differences."""
    inputs = case.inputs.requires_grad_()
    delta = torch.randn_like(case.native(inputs, case.weight)).requires_grad_()

    ways = [weight_gradients, by_unfolding] if len(case.shape) == 4 and case.groups == 1 else [weight_gradients]
    weight = case.weight.requires_grad_()
    for way in ways:

        def gradients(inputs: Tensor, delta: Tensor, way: Callable[..., Tensor] = way) -> Tensor:
            return way(inputs, delta, case.updates, case.shape, case.geometry)

        for row, (a, d) in enumerate(zip(inputs.split(case.size), delta.split(case.size), strict=True)):
            (expected,) = torch.autograd.grad(case.native(a, weight), weight, d)
            torch.testing.assert_close(gradients(inputs, delta)[row], expected)
        assert torch.autograd.gradcheck(gradients, (inputs, delta), fast_mode=True)


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_gradients_are_never_wrong_in_silence(groups: int) -> None:
    """Their second derivative is right where another path leads to the inputs, too."""
    source = torch.Generator().manual_seed(groups)
    inputs, delta = (torch.randn(4, 2, *side, generator=source, dtype=torch.float64) for side in ((4, 4), (3, 3)))
    geometry = Geometry((1, 1), (0, 0), (1, 1), groups)

    def derivative(inputs: Tensor, delta: Tensor) -> tuple[Tensor, ...]:
        found = weight_gradients(inputs, delta, 2, torch.Size([2, 2 // groups, 2, 2]), geometry)
        once = torch.autograd.grad(found.square().sum(), (inputs, delta), create_graph=True)
        return once[0] + inputs.sin(), once[1] + delta.sin()

    assert torch.autograd.gradcheck(derivative, (inputs.requires_grad_(), delta.requires_grad_()), fast_mode=True)
