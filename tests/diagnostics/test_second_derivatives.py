"""The probe passes what can be attacked, names what cannot, and leaves no trace."""

import random
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torchvision.models import mobilenet_v3_small

from gibench.diagnostics import probe_second_derivatives
from gibench.errors import SecondDerivativeError, ShapeError, VictimError

IMAGE_SHAPE = (3, 8, 8)
CLASSES = 5


def convnet(*layers: nn.Module, features: int = 4 * 8 * 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers, nn.Flatten(), nn.Linear(features, CLASSES))


class Attention(nn.Module):
    """One attention layer over the rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 8, 8) -> (N, CLASSES)."""
        rows = images.mean(1)
        mixed: Tensor = self.attention(rows, rows, rows, need_weights=False)[0]
        logits: Tensor = self.head(mixed.mean(1))
        return logits


class Function(nn.Module):
    """A layer that applies a plain function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


@pytest.mark.parametrize(
    "victim",
    [
        convnet(nn.ReLU()),
        convnet(nn.Sigmoid()),
        convnet(nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2), features=4 * 4 * 4),
        convnet(nn.GroupNorm(2, 4), nn.SiLU(inplace=True), nn.Dropout(0.5)),
        convnet(nn.Hardswish()),
    ],
    ids=["relu", "sigmoid", "batch norm, max pooling", "group norm, dropout", "hardswish"],
)
def test_victims_that_can_be_attacked_pass(victim: nn.Module) -> None:
    probe_second_derivatives(victim, IMAGE_SHAPE, CLASSES)


REFUSED = {
    "hardsigmoid": (convnet(nn.Hardsigmoid()), "hardsigmoid_backward.*nn.Sigmoid"),
    "attention": (Attention(), r"_scaled_dot_product_\w+_backward.*SDPBackend.MATH"),
    "random relu": (convnet(nn.RReLU()), "rrelu_with_noise"),
    "fractional pooling": (convnet(nn.FractionalMaxPool2d(2, output_size=4), features=64), "random operation"),
    "checkpoint": (
        convnet(Function(lambda x: checkpoint(torch.sigmoid, x, use_reentrant=True))),
        "use_reentrant=False",
    ),
    "detach": (nn.Sequential(Function(torch.detach), *convnet()), "does not depend on the images"),
    "rounding": (nn.Sequential(Function(torch.round), *convnet()), "does not depend on the images"),
    "dead layer": (convnet(nn.Threshold(1e6, 0.0)), "does not depend on the images"),
    "root of zero": (convnet(Function(lambda x: (x - x.detach()).abs().sqrt())), "NaN or infinite"),
    "no parameters": (nn.Flatten(), "no parameters"),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(("victim", "named"), REFUSED.values(), ids=REFUSED)
def test_victims_that_cannot_be_attacked_are_refused_with_the_operation(victim: nn.Module, named: str) -> None:
    with pytest.raises(SecondDerivativeError, match=named) as caught:
        probe_second_derivatives(victim, IMAGE_SHAPE, CLASSES)
    assert "\n" not in str(caught.value)


def test_hardsigmoid_is_found_inside_torchvision_models() -> None:
    with pytest.raises(SecondDerivativeError, match="hardsigmoid_backward"):
        probe_second_derivatives(mobilenet_v3_small(weights=None), (3, 32, 32), 1000)


def test_the_advice_for_attention_helps() -> None:
    with sdpa_kernel(SDPBackend.MATH):
        probe_second_derivatives(Attention(), IMAGE_SHAPE, CLASSES)


def test_double_precision_and_tiny_gradients_pass() -> None:
    victim = convnet(nn.ReLU()).double()
    probe_second_derivatives(victim, IMAGE_SHAPE, CLASSES)
    shrinking = [Function(lambda x: 1e-9 * x) for _ in range(3)]
    probe_second_derivatives(convnet(*shrinking).float(), IMAGE_SHAPE, CLASSES)


@pytest.mark.parametrize(
    ("image_shape", "classes", "named"), [((3, 9, 9), CLASSES, "image size"), (IMAGE_SHAPE, 7, "num_classes")]
)
def test_a_wrong_size_is_not_called_a_missing_derivative(
    image_shape: tuple[int, int, int], classes: int, named: str
) -> None:
    with pytest.raises(ShapeError, match=named):
        probe_second_derivatives(convnet(nn.ReLU()), image_shape, classes)


@pytest.mark.parametrize("fails", [False, True])
def test_the_probe_leaves_no_trace(fails: bool) -> None:
    victim = convnet(nn.BatchNorm2d(4), nn.Hardsigmoid() if fails else nn.ReLU(), nn.Dropout(0.5)).train()
    victim[1].eval()
    modes = [module.training for module in victim.modules()]
    state = deepcopy(victim.state_dict())
    random_state = torch.get_rng_state()

    with torch.no_grad():
        if fails:
            with pytest.raises(SecondDerivativeError):
                probe_second_derivatives(victim, IMAGE_SHAPE, CLASSES)
        else:
            probe_second_derivatives(victim, IMAGE_SHAPE, CLASSES)
        assert not torch.is_grad_enabled()

    assert [module.training for module in victim.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, victim.state_dict()[name]) for name, value in state.items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in victim.parameters())


def test_random_numbers_that_the_victim_draws_do_not_move_the_global_state() -> None:
    victim = convnet(Function(lambda x: x + torch.rand(1)))
    before = torch.get_rng_state()
    with pytest.raises(SecondDerivativeError, match="random operation"):
        probe_second_derivatives(victim, IMAGE_SHAPE, CLASSES)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_probe_agrees_with_a_plain_double_backward() -> None:
    """What it refuses, plain autograd refuses, too: the probe is no stricter than the loss needs."""
    victim = convnet(nn.Hardsigmoid())
    images = torch.rand(2, *IMAGE_SHAPE, requires_grad=True)
    loss = cross_entropy(victim(images), torch.tensor([0, 1]))
    update = torch.autograd.grad(loss, list(victim.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="hardsigmoid_backward"):
        torch.autograd.grad(sum((value.square().sum() for value in update), torch.zeros(())), images)


class _Counting(nn.Module):
    """Changes a buffer at every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        return inputs


class _Noisy(nn.Module):
    """Adds noise that torch does not know of."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + random.random()  # noqa: S311 - not for secrets


@pytest.mark.parametrize(("layer", "problem"), [(_Counting(), "changes its buffer"), (_Noisy(), "two answers")])
def test_a_forward_that_is_no_fixed_function_is_refused(layer: nn.Module, problem: str) -> None:
    with pytest.raises(VictimError, match=problem):
        probe_second_derivatives(convnet(layer), IMAGE_SHAPE, CLASSES)
