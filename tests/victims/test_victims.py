"""Victims against arithmetic and published constants, their fingerprints, and any network by path."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import nn

from gibench.errors import ConfigurationError, ShapeError
from gibench.victims import (
    Victim,
    cnn,
    cnn6,
    convbig,
    convnet64,
    fcn3,
    lenet,
    lti_resnet20,
    mlp,
    precode_lenet,
    precode_mlp,
    resnet18,
    resnet20,
    resnet20_4,
    save_weights,
)

CIFAR10_NORMALIZATION = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET_NORMALIZATION = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RAW = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
MNIST: dict[str, Any] = {"image_shape": (1, 28, 28), "mean": (0.1307,), "std": (0.3081,)}


def lenet4(**arguments: Any) -> Victim:
    return lenet(convolutions=4, **arguments)


def conv(before: int, after: int, side: int, bias: int = 1) -> int:
    return before * after * side**2 + bias * after


def linear(before: int, after: int) -> int:
    return before * after + after


def resnet_parameters(blocks: list[int], width: int, *, projections: bool) -> int:
    total = conv(3, width, 3, 0) + 2 * width
    before = width
    for stage, count in enumerate(blocks):
        after = width * 2**stage
        for block in range(count):
            inside = before if block == 0 else after
            total += conv(inside, after, 3, 0) + conv(after, after, 3, 0) + 4 * after
            if projections and inside != after:
                total += conv(inside, after, 1, 0) + 2 * after
        before = after
    return total + linear(before, 10)


CONVNET64 = sum(conv(a, b, 3) + 2 * b for a, b in [(3, 64), (64, 128), (128, 128), (128, 256), *[(256, 256)] * 4])

CNN6 = conv(3, 12, 4, 0) + sum(conv(a, b, 3, 0) for a, b in [(12, 36), (36, 36), (36, 36), (36, 64), (64, 128)])
CONVBIG = conv(3, 32, 3) + conv(32, 64, 1) + linear(5184, 2000) + linear(2000, 1000) + linear(1000, 10)
BOTTLENECK = linear(256, 512) + linear(256, 256)
PRECODE_MLP = linear(3072, 500) + 4 * linear(500, 500) + linear(500, 256) + linear(256, 500) + linear(500, 10)
PRECODE_LENET = conv(3, 12, 5) + 3 * conv(12, 12, 5) + linear(768, 256) + linear(256, 768) + linear(768, 10)

PARAMETERS: list[tuple[str, Callable[[], Victim], int, int]] = [
    # Name, victim, its published count (of METHODS or a stored log), and the same by arithmetic from the shapes.
    ("lenet", lenet, 15_826, conv(3, 12, 5) + 2 * conv(12, 12, 5) + linear(768, 10)),
    ("lenet-100", lambda: lenet(num_classes=100), 85_036, conv(3, 12, 5) + 2 * conv(12, 12, 5) + linear(768, 100)),
    ("lenet-mnist", lambda: lenet(image_shape=(1, 28, 28)), 13_426, conv(1, 12, 5) + 7_224 + linear(588, 10)),
    ("lenet4", lenet4, 19_438, conv(3, 12, 5) + 3 * conv(12, 12, 5) + linear(768, 10)),
    ("mlp", mlp, 5_256_202, linear(3072, 1024) + 2 * linear(1024, 1024) + linear(1024, 10)),
    ("cnn6", cnn6, 154_266, CNN6 + linear(3200, 10)),
    ("cnn6-binary", lambda: cnn6(head="binary"), 125_456, CNN6 + 3200),
    ("cnn6-d", lambda: cnn6(deficient=True, head="binary"), 118_544, CNN6 - 16 * 9 * (12 + 36) + 3200),
    ("fcn3", fcn3, 884_100, 784 * 1000 + 1000 * 100 + 100),
    ("convnet64", convnet64, 2_904_970, CONVNET64 + linear(2304, 10)),
    ("resnet20_4", resnet20_4, 4_327_754, resnet_parameters([3, 3, 3], 64, projections=True)),
    ("resnet18", resnet18, 11_173_962, resnet_parameters([2, 2, 2, 2], 64, projections=True)),
    ("resnet20", resnet20, 269_722, resnet_parameters([3, 3, 3], 16, projections=False)),
    ("lti_resnet20", lti_resnet20, 2 * 134_861, resnet_parameters([3, 3, 3], 16, projections=False)),
    ("cnn", cnn, 430_102, conv(3, 32, 3) + conv(32, 64, 3) + linear(4096, 100) + linear(100, 10)),
    ("cnn-mnist", lambda: cnn(**MNIST), 333_526, conv(1, 32, 3) + conv(32, 64, 3) + linear(3136, 100) + 1_010),
    ("convbig", convbig, 12_384_018, CONVBIG),
    ("precode_mlp", precode_mlp, 2_997_642, PRECODE_MLP + BOTTLENECK),
    ("precode_lenet", precode_lenet, 611_054, PRECODE_LENET + BOTTLENECK),
]
PLAIN = [lenet, lenet4, mlp, convnet64, resnet20_4, resnet18, resnet20, lti_resnet20, cnn, convbig, cnn6, fcn3]
CIFAR_VICTIMS = [*PLAIN, precode_mlp, precode_lenet]
each_victim = pytest.mark.parametrize("build", CIFAR_VICTIMS, ids=lambda build: build.__name__)


def weights_sha256(victim: Victim) -> str:
    return str(victim.fingerprint()["weights_sha256"])


@pytest.mark.parametrize(
    ("build", "published", "arithmetic"), [row[1:] for row in PARAMETERS], ids=[r[0] for r in PARAMETERS]
)
def test_parameter_counts(build: Callable[[], Victim], published: int, arithmetic: int) -> None:
    victim = build()
    assert sum(parameter.numel() for parameter in victim.parameters()) == published == arithmetic
    assert victim.fingerprint()["parameters"] == published
    assert victim(torch.rand(2, *victim.image_shape)).shape == (2, victim.num_classes)


def test_convnet64_has_the_published_number_of_buffer_values() -> None:
    assert sum(buffer.numel() for buffer in convnet64().network.buffers()) == 3_208


@each_victim
def test_only_the_seed_decides_the_weights(build: Callable[..., Victim]) -> None:
    torch.manual_seed(1)
    first = build(seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build(seed=5)
    assert torch.equal(state, torch.get_rng_state())
    assert first.fingerprint() == second.fingerprint()
    assert weights_sha256(first) != weights_sha256(build(seed=6))


@pytest.mark.parametrize(
    ("build", "normalization"),
    [
        (lenet, RAW),
        (precode_lenet, RAW),
        (lti_resnet20, RAW),
        (cnn6, RAW),
        (mlp, CIFAR10_NORMALIZATION),
        (convnet64, CIFAR10_NORMALIZATION),
        (resnet20_4, CIFAR10_NORMALIZATION),
        (resnet18, CIFAR10_NORMALIZATION),
        (cnn, CIFAR10_NORMALIZATION),
        (convbig, CIFAR10_NORMALIZATION),
        (precode_mlp, CIFAR10_NORMALIZATION),
        (resnet20, IMAGENET_NORMALIZATION),
    ],
)
def test_default_normalization(build: Callable[[], Victim], normalization: tuple[tuple[float, ...], ...]) -> None:
    victim = build()
    mean, std = torch.tensor(normalization)
    assert torch.equal(victim.mean.flatten(), mean)
    assert torch.equal(victim.std.flatten(), std)


@each_victim
def test_gradients_can_be_differentiated_again(build: Callable[[], Victim]) -> None:
    victim = build().eval()
    images = torch.rand(1, *victim.image_shape, requires_grad=True)
    loss = F.cross_entropy(victim(images), torch.tensor([3]))
    gradient = torch.autograd.grad(loss, list(victim.parameters()), create_graph=True)
    (second,) = torch.autograd.grad(sum((g * g).sum() for g in gradient), images)
    assert torch.isfinite(second).all()
    assert second.abs().max() > 0


@pytest.mark.parametrize(
    ("build", "bound"),
    [(lenet, 0.5), (lenet4, 0.5), (lti_resnet20, 0.5), (precode_lenet, 0.5), (precode_mlp, 0.05)],
)
def test_uniform_weights_fill_their_interval(build: Callable[[], Victim], bound: float) -> None:
    values = torch.cat([parameter.detach().flatten() for parameter in build().parameters()]) / bound
    assert -1 <= values.min() < -0.998
    assert 0.998 < values.max() <= 1
    assert values.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.02)
    assert build().initialization == f"U(-{bound}, {bound}), seed 0"


@pytest.mark.parametrize(("build", "layer"), [(lenet, "conv1"), (precode_lenet, "conv1"), (precode_mlp, "fc1")])
def test_default_initialization_is_smaller(build: Callable[..., Victim], layer: str) -> None:
    victim = build(initialization="default")
    first = victim.get_parameter(f"network.{layer}.weight")
    bound = first[0].numel() ** -0.5  # PyTorch draws from U(-1, 1) / sqrt(fan-in)
    assert 0.99 * bound < first.abs().max() <= bound
    assert victim.initialization == "PyTorch default, seed 0"


def test_convolutions_decide_the_name_of_lenet() -> None:
    assert [lenet().architecture, lenet4().architecture] == ["lenet", "lenet4"]
    strides = [layer.stride for layer in lenet4().modules() if isinstance(layer, nn.Conv2d)]
    assert strides == [(2, 2), (2, 2), (1, 1), (1, 1)]


def test_convbig_frames_its_map_with_the_bias_of_the_second_convolution() -> None:
    victim = convbig()
    framed = victim.get_submodule("network.conv2")(torch.rand(1, 32, 16, 16))
    assert framed.shape == (1, 64, 18, 18)
    bias = victim.get_parameter("network.conv2.bias")
    assert torch.equal(framed[0, :, 0], bias[:, None].expand(64, 18))
    assert torch.equal(framed[0, :, :, -1], bias[:, None].expand(64, 18))


def test_cnn_draws_kernels_with_variance_one_over_fan_in_and_zero_biases() -> None:
    victim = cnn()
    for name, fan_in in [("conv2", 32 * 9), ("fc1", 4096)]:
        kernel = victim.get_parameter(f"network.{name}.weight").detach()
        assert kernel.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
        # The cut at two standard deviations of the wider normal: 2 / 0.8796 of the kernel's own.
        assert 2.15 < kernel.abs().max().item() * fan_in**0.5 <= 2.2737
        assert not victim.get_parameter(f"network.{name}.bias").any()


def test_normalization_must_fit_the_channels() -> None:
    with pytest.raises(ShapeError, match="mean and std need"):
        cnn(image_shape=(1, 28, 28))


def test_cnn6_has_the_published_maps() -> None:
    """Sides 17, 9, 9, 9, 5, 5 for 32x32 pixels; CNN6-d narrows the second map."""
    for victim, second in ((cnn6(), 36), (cnn6(deficient=True), 20)):
        maps, image = [], torch.rand(1, 3, 32, 32)
        for layer in victim.network[:12]:
            image = layer(image)
            maps.append(tuple(image.shape[1:]))
        assert maps[::2] == [(12, 17, 17), (second, 9, 9), (36, 9, 9), (36, 9, 9), (64, 5, 5), (128, 5, 5)]
        assert all(layer.bias is None for layer in victim.network if isinstance(layer, nn.Conv2d))
    names = [cnn6().architecture, cnn6(deficient=True, head="binary").architecture, fcn3().architecture]
    assert names == ["cnn6", "cnn6-d-binary", "fcn3-binary"]


def test_a_binary_head_halves_the_classes() -> None:
    with pytest.raises(ConfigurationError, match="num_classes is 5: make it even"):
        cnn6(head="binary", num_classes=5)
    logits = fcn3()(torch.rand(3, 1, 28, 28))
    assert not logits[:, :5].any()
    assert torch.equal(logits[:, 5:], logits[:, 5:6].expand(-1, 5))


# Fingerprints.


class TwoOrders(nn.Module):
    """The same two parameters, registered in either order."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.full((3,), float(ord(name)))))


def test_order_of_names_does_not_change_the_fingerprint() -> None:
    facts: dict[str, Any] = {
        "architecture": "two",
        "image_shape": (3, 8, 8),
        "num_classes": 3,
        "initialization": "constant",
    }
    first, second = (Victim(TwoOrders(names), **facts) for names in (["a", "b"], ["b", "a"]))
    assert list(first.state_dict()) != list(second.state_dict())
    assert first.fingerprint() == second.fingerprint()


@given(tensor=st.integers(0, 7), place=st.floats(0, 1, exclude_max=True))
def test_one_changed_weight_changes_the_fingerprint(tensor: int, place: float) -> None:
    victim = lenet()
    before = weights_sha256(victim)
    flat = list(victim.parameters())[tensor].data.view(-1)
    position = int(place * len(flat))
    flat[position] = torch.nextafter(flat[position], torch.tensor(1.0))
    assert weights_sha256(victim) != before


# Configuration.


@pytest.mark.parametrize(
    "configuration",
    [
        {"class_path": "gibench.victims.lenet", "init_args": {"seed": 3, "initialization": "default"}},
        {"class_path": "gibench.victims.lenet", "init_args": {"convolutions": 4}},
        {"class_path": "gibench.victims.precode_mlp", "init_args": {"num_classes": 4}},
        {"class_path": "gibench.victims.mlp.mlp", "init_args": {"width": 8}},
        {
            "class_path": "gibench.victims.by_path",
            "init_args": {"path": "torchvision.models.alexnet", "num_classes": 4, "arguments": {"dropout": 0.1}},
        },
        {
            "class_path": "gibench.victims.load_weights",
            "init_args": {"victim": {"class_path": "gibench.victims.lenet"}, "path": "lenet.safetensors"},
        },
    ],
    ids=["lenet", "lenet4", "precode", "mlp", "by_path", "load_weights"],
)
def test_victims_are_configured_from_yaml(
    configuration: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_weights(lenet(seed=9), tmp_path / "lenet.safetensors")
    monkeypatch.setenv("GIBENCH_WEIGHTS", str(tmp_path))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--victim", type=Victim)
    victim = parser.instantiate(parser.parse_object({"victim": configuration})).victim
    assert isinstance(victim, Victim)
    assert victim(torch.rand(1, *victim.image_shape)).shape == (1, victim.num_classes)
