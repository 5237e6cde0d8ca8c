"""Rough parts are found in layers and in calls; the softened copy is smooth, and the victim in the limit."""

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references.updates import updates
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap
from torch.nn import functional as F

from gibench.engine.gradient import LocalGradient
from gibench.errors import ConfigurationError, RefusalError
from gibench.seeding import uniform_rows
from gibench.victims import Victim, convnet64, lenet, mlp, resnet18, resnet20, rough_parts, softened
from gibench.victims.soft_functions import SOFT

Layer = Callable[[Tensor], Tensor]
SHAPE = (3, 8, 8)


def small_mlp() -> Victim:
    return mlp(width=32)


def relu_lenet() -> Victim:
    return lenet(activation="relu")


SERVED: list[tuple[Callable[[], Victim], int]] = [  # with the number of rough parts
    (relu_lenet, 3),
    (small_mlp, 3),
    (convnet64, 10),
    (resnet20, 10),
    (resnet18, 9),
]
each_victim = pytest.mark.parametrize(
    "build", [row[0] for row in SERVED], ids=["lenet-relu", "mlp", "convnet64", "resnet20", "resnet18"]
)
small = pytest.mark.parametrize("build", [relu_lenet, small_mlp, resnet20], ids=["lenet-relu", "mlp", "resnet20"])


class Calls(nn.Module):
    """Calls a function between two layers, where no module shows it."""

    def __init__(self, function: Layer) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        with torch.no_grad():
            self.fc = nn.Linear(function(self.conv(torch.zeros(1, *SHAPE))).flatten(1).shape[1], 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(self.function(self.conv(images)).flatten(1))
        return logits


def victim_of(function: Layer) -> Victim:
    torch.manual_seed(0)
    network = Calls(function)
    facts: dict[str, Any] = {"architecture": "calls", "num_classes": 5, "initialization": "default"}
    return Victim(network, image_shape=SHAPE, **facts).double().eval()


def overwrites(x: Tensor) -> Tensor:
    """Goes on with its argument, not with what the call returns."""
    F.relu(x, inplace=True)
    return x


ROUGH: list[tuple[str, Layer, float | None]] = [
    # Name in the report; the function; the bound of the softened one at sharpness 1, or None where it is refused.
    ("relu", F.relu, math.log(2)),
    ("relu", torch.relu, math.log(2)),
    ("relu", lambda x: x.relu(), math.log(2)),
    ("relu", lambda x: torch.relu_(x), math.log(2)),
    ("relu", overwrites, math.log(2)),
    ("relu", nn.ReLU(inplace=True), math.log(2)),
    ("leaky_relu", lambda x: F.leaky_relu(x, 0.3), 0.7 * math.log(2)),
    ("leaky_relu", nn.LeakyReLU(0.3, inplace=True), 0.7 * math.log(2)),
    ("leaky_relu", lambda x: F.leaky_relu_(x, 0.3), 0.7 * math.log(2)),
    ("prelu", nn.PReLU(4, init=0.25), 0.75 * math.log(2)),
    ("hardtanh", nn.ReLU6(), math.log(2)),
    ("hardtanh", nn.Hardtanh(-0.2, 0.1, inplace=True), math.log(2)),
    ("clamp", lambda x: x.clamp(min=0), math.log(2)),
    ("clamp", lambda x: torch.clamp(x, max=0.1), math.log(2)),
    ("clamp", lambda x: x.clamp_(-0.1, 0.2), math.log(2)),
    ("max_pool2d", lambda x: F.max_pool2d(x, 2), math.log(4)),
    ("max_pool2d", nn.MaxPool2d((3, 2), stride=2, padding=1), math.log(6)),
    ("adaptive_max_pool2d", nn.AdaptiveMaxPool2d(1), None),
    ("max_pool2d", lambda x: F.max_pool2d(x, 2, return_indices=True)[0], None),
    ("clamp", lambda x: torch.clamp(x, min=x.detach().mean()), None),
    ("hardswish", F.hardswish, None),
    ("threshold", nn.Threshold(0.1, 0.0), None),
    ("elu", nn.ELU(0.5), None),
    ("elu", nn.SELU(), None),
    ("abs", torch.abs, None),
    ("maximum", lambda x: torch.maximum(x, torch.zeros_like(x)), None),
    ("gt", lambda x: torch.where(x > 0, x, 0 * x), None),
    ("round", torch.round, None),
    ("topk", lambda x: x.flatten(1).topk(4).values, None),
]
SMOOTH: list[Layer] = [
    torch.sigmoid, torch.tanh, F.silu, F.gelu, F.softplus, F.mish, F.elu, nn.CELU(0.3), nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d(1), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.Dropout(0.5),
]  # fmt: skip


# What is found.


@pytest.mark.parametrize(("name", "function", "bound"), ROUGH, ids=[f"{i}-{row[0]}" for i, row in enumerate(ROUGH)])
def test_each_rough_function_is_found_and_softened_or_refused(name: str, function: Layer, bound: float | None) -> None:
    victim = victim_of(function)
    where = "network.function" if isinstance(function, nn.Module) else "network"
    assert rough_parts(victim) == [f"{where} ({name})"]
    if bound is None:
        with pytest.raises(RefusalError, match=rf"calls cannot be softened: {where} \({name}\)"):
            softened(victim, 10.0)
        return
    soft = softened(victim, 7.0)
    assert rough_parts(soft) == []
    images = torch.rand(2, *SHAPE, dtype=torch.float64)
    weight = victim.get_parameter("network.fc.weight").abs().sum(1).max()
    error = (soft(images) - victim(images)).abs().max()
    assert 0 < error <= weight * bound / 7.0 * 1.0001
    assert torch.allclose(softened(victim, 1e9)(images), victim(images), atol=1e-7)


@pytest.mark.parametrize("function", SMOOTH, ids=[getattr(f, "__name__", None) or type(f).__name__ for f in SMOOTH])
def test_smooth_functions_are_not_reported(function: Layer) -> None:
    victim = victim_of(function)
    assert rough_parts(victim) == []
    assert softened(victim, 3.0) is victim


@pytest.mark.parametrize(("build", "parts"), SERVED, ids=[row[0].__name__ for row in SERVED])
def test_the_rough_parts_of_victims(build: Callable[[], Victim], parts: int) -> None:
    victim = build().eval()
    found = rough_parts(victim)
    assert len(found) == len(set(found)) == parts
    assert all("relu" in part or "max_pool2d" in part for part in found)


@pytest.mark.parametrize("build", [lenet, *(lambda b=b: b(activation="silu") for b in (convnet64, resnet20, mlp))])
def test_smooth_victims_have_none(build: Callable[[], Victim]) -> None:
    assert rough_parts(build().eval()) == []


def test_what_depends_on_the_weights_alone_does_not_count() -> None:
    victim = victim_of(torch.sigmoid)
    network = victim.network
    victim.network.function = lambda x: x * network.fc.weight.abs().max()
    assert rough_parts(victim) == []


def test_a_training_victim_stays_as_it_is() -> None:
    victim = resnet20().train()
    before, random = victim.fingerprint(), torch.get_rng_state()
    assert rough_parts(victim)
    assert softened(victim, 5.0).training
    assert victim.fingerprint() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in victim.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_is_scripted_cannot_be_read_and_is_refused() -> None:
    """From its second run on, a scripted module shows none of its operations."""
    victim = victim_of(torch.jit.script(nn.Sequential(nn.Sigmoid(), nn.ReLU())))
    assert [rough_parts(victim) for _ in range(3)] == [["network.function (scripted)"]] * 3
    with pytest.raises(RefusalError, match=r"network\.function \(scripted\)"):
        softened(victim, 3.0)


def test_a_failing_forward_leaves_no_hook() -> None:
    victim = victim_of(torch.sigmoid)
    victim.network.function = lambda x: x.reshape(-1, 7, 7, 7)
    with pytest.raises(RuntimeError):
        rough_parts(victim)
    assert rough_parts(victim_of(F.relu)) == ["network (relu)"]


# What is put in place.


@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 1),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    ceil=st.booleans(),
)
def test_soft_pooling_meets_pytorchs_geometry(
    kernel: tuple[int, int], stride: tuple[int, int], padding: int, dilation: tuple[int, int], ceil: bool
) -> None:
    """The limit is PyTorch's pooling, whatever the window; and the exponentials add up over pixels, not padding."""
    padding = min(padding, *(k // 2 for k in kernel))
    pool = SOFT[torch.max_pool2d]
    x = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    settings = (kernel, stride, padding, dilation, ceil)
    assert torch.allclose(pool(1e6, x, *settings), F.max_pool2d(x, *settings), atol=1e-5)  # type: ignore[arg-type]
    ones = torch.ones(1, 1, 9, 8, dtype=torch.float64)
    weight = torch.ones(1, 1, *kernel, dtype=torch.float64)
    if not ceil:
        counted = F.conv2d(ones, weight, stride=stride, padding=padding, dilation=dilation)
        assert torch.allclose(pool(1.0, 0 * ones, *settings), counted.log())  # type: ignore[arg-type]


def test_soft_relu_is_softplus_over_the_sharpness() -> None:
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)
    expected = torch.log1p(torch.exp(4 * x)) / 4
    assert torch.allclose(SOFT[F.relu](4.0, x), expected, rtol=1e-12)  # type: ignore[arg-type]


@each_victim
def test_logits_approach_the_victims(build: Callable[[], Victim]) -> None:
    victim = build().double().eval()
    images = torch.rand(1, *victim.image_shape, dtype=torch.float64)
    with torch.no_grad():
        exact = victim(images)
        errors = [(softened(victim, b)(images) - exact).norm() / exact.norm() for b in (1e1, 1e4, 1e7)]
    assert errors[0] > 10 * errors[1] >= 10 * errors[2]
    assert errors[2] < 1e-4


@each_victim
def test_weights_are_shared_and_keep_their_names(build: Callable[[], Victim]) -> None:
    victim = build().eval()
    soft = softened(victim, 20.0)
    for ours, theirs in (
        (soft.named_parameters(), victim.named_parameters()),
        (soft.named_buffers(), victim.named_buffers()),
    ):
        mine, original = dict(ours), dict(theirs)
        assert list(mine) == list(original)
        assert all(mine[name] is original[name] for name in original)
    assert soft.network is not victim.network
    assert (soft.image_shape, soft.num_classes) == (victim.image_shape, victim.num_classes)
    assert not any(module.training for module in soft.modules())
    assert rough_parts(victim)


def test_infinite_sharpness_is_the_victim_itself() -> None:
    victim = small_mlp()
    assert softened(victim, math.inf) is victim


@pytest.mark.parametrize("sharpness", [0.0, -1.0, math.nan])
def test_a_sharpness_that_is_not_positive_is_an_error(sharpness: float) -> None:
    with pytest.raises(ConfigurationError, match="make it positive, or infinite"):
        softened(small_mlp(), sharpness)


# Updates and their derivatives.


def update_of(victim: Victim, images: Tensor) -> dict[str, Tensor]:
    return LocalGradient(victim)(images, torch.zeros(images.shape[:2], dtype=torch.int64))


@small
def test_the_update_has_a_derivative_that_finite_differences_confirm(build: Callable[[], Victim]) -> None:
    soft = softened(build().double().eval().requires_grad_(False), 10.0)
    images, direction = torch.rand(2, 1, 1, 3, 32, 32, dtype=torch.float64)
    update, forward = jvp(lambda x: update_of(soft, x), (images,), (direction,))
    step = 1e-6
    above, below = (update_of(soft, images + sign * step * direction) for sign in (1, -1))
    for name, value in forward.items():
        numeric = (above[name] - below[name]) / (2 * step)
        assert (numeric - value).norm() <= 1e-4 * value.norm() + 1e-9, name
    _, pull = vjp(lambda x: update_of(soft, x), images)
    (backward,) = pull(update)
    left = sum((update[name] * forward[name]).sum() for name in update)
    assert torch.isclose((backward * direction).sum(), torch.as_tensor(left), rtol=1e-9)


def test_directions_go_together_under_vmap() -> None:
    """`vmap(jvp(vmap(grad)))` over directions, through pooling: what an explicit Jacobian takes."""
    soft = softened(victim_of(lambda x: F.max_pool2d(F.relu(x), 3, 2, 1)), 10.0)
    images = torch.rand(1, 1, *SHAPE, dtype=torch.float64)
    directions = torch.rand(2, 1, 1, *SHAPE, dtype=torch.float64)

    def push(direction: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = jvp(lambda x: update_of(soft, x), (images,), (direction,))[1]
        return found

    together = vmap(push)(directions)
    for index, direction in enumerate(directions):
        alone = push(direction)
        assert all(torch.allclose(together[name][index], alone[name], rtol=1e-9, atol=1e-12) for name in alone)


@small
def test_updates_are_those_of_plain_autograd(build: Callable[[], Victim]) -> None:
    soft = softened(build().double().eval(), 10.0)
    images = torch.rand(2, 2, 3, 32, 32, dtype=torch.float64)
    expected = updates(soft, images, torch.zeros(2, 2, dtype=torch.int64))
    found = update_of(soft, images)
    assert list(found) == list(expected)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-8, atol=1e-12) for name in expected)
    again = update_of(deepcopy(soft), images)  # as a client copies it
    assert all(torch.equal(found[name], again[name]) for name in found)


@small
def test_the_update_of_a_real_image_approaches_the_victims(build: Callable[[], Victim], cifar10_root: Path) -> None:
    pixels = np.load(cifar10_root / "cifar10.npz")["test_images"][:1]
    images = torch.from_numpy(pixels).double().permute(0, 3, 1, 2)[None] / 255
    victim = build().double().eval()
    exact = update_of(victim, images)

    def error(sharpness: float) -> float:
        soft = update_of(softened(victim, sharpness), images)
        off = sum((soft[name] - exact[name]).square().sum().item() for name in exact)
        return math.sqrt(off / sum(value.square().sum().item() for value in exact.values()))

    assert error(1e2) > error(1e8)
    assert error(1e8) < 1e-5


def test_relative_sharpness_does_not_depend_on_the_scale_of_a_layer() -> None:
    """Weights of a first layer ten times larger and of the next ten times smaller make the same softened network."""

    def build(factor: float) -> Victim:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, 5), nn.ReLU())
        with torch.no_grad():
            for parameter in network[1].parameters():
                parameter.mul_(factor)
            network[3].weight.div_(factor)
        facts = {"architecture": "two layers", "initialization": "default"}
        return Victim(network, image_shape=(3, 8, 8), num_classes=5, **facts).double()  # type: ignore[arg-type]

    images = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    small, large = softened(build(1.0), 3.0, relative=True), softened(build(10.0), 3.0, relative=True)
    torch.testing.assert_close(small(images), large(images), rtol=1e-6, atol=1e-7)  # weights are float32
    absolute = softened(build(1.0), 3.0), softened(build(10.0), 3.0)
    assert not torch.allclose(absolute[0](images), absolute[1](images), rtol=1e-3)


def test_relative_sharpness_is_divided_by_what_each_function_takes() -> None:
    victim = lenet(seed=0, activation="relu").double()
    soft = softened(victim, 2.0, relative=True)
    seen: list[float] = []
    for layer in (victim.network.act1, victim.network.act2, victim.network.act3):  # type: ignore[union-attr]
        layer.register_forward_pre_hook(lambda _, taken: seen.append(taken[0].square().mean().sqrt().item()))  # type: ignore[union-attr, operator]
    victim(0.25 + 0.5 * uniform_rows(victim.image_shape, (0,), "smoothness"))
    assert soft.scales == pytest.approx(seen)  # type: ignore[attr-defined]
    assert seen[2] > 5 * seen[0]
