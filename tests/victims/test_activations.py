"""Activations by name: formulas, names in records, and weights and fingerprints that do not move."""

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from gibench.errors import ConfigurationError, WeightsError
from gibench.victims import (
    Activation,
    Victim,
    activation_layer,
    convnet64,
    lenet,
    load_weights,
    mlp,
    resnet18,
    resnet20,
    resnet20_4,
    save_weights,
)

FORMULAS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(x, 0.0),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "softplus": lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)),
}
VICTIMS: list[tuple[Callable[..., Victim], str, Activation]] = [
    (lenet, "lenet", "sigmoid"),
    (mlp, "mlp", "relu"),
    (convnet64, "convnet64", "relu"),
    (resnet20, "resnet20", "relu"),
    (resnet20_4, "resnet20_4", "relu"),
    (resnet18, "resnet18", "relu"),
]
each_victim = pytest.mark.parametrize(("build", "name", "own"), VICTIMS, ids=[row[1] for row in VICTIMS])

PUBLISHED = {  # sha256 of the weights at seed 0 before activations could be chosen
    "lenet": "f8f7c07a721612bc8e6f77faf339b7fb87168943e1d66b82b64107f752f442e8",
    "mlp": "abe1cbe6059ea985994a9ba38b93198588fa9a60370ace7429784ddd0d6c7b84",
    "convnet64": "b387c6a59844faaa2872507f22360735524a9b2fc480aa68ecea00f83d8341b0",
    "resnet20": "09d0fdc1986e500333a57ea65a0e8953e234f6ce496b850b5a7d61711f280b39",
    "resnet20_4": "e8cdd74daa3480e24c510710d2afedeacbb5c04acd2735acb8e1a6b100cd69c7",
    "resnet18": "be6cf360754fd2e657858bc5096458f614c684de8ad481a236147500bc9cc083",
}


def activations_of(victim: Victim) -> set[type[nn.Module]]:
    kinds = (nn.ReLU, nn.Sigmoid, nn.Softplus, nn.SiLU, nn.GELU)
    return {type(module) for module in victim.modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("name", get_args(Activation))
def test_each_activation_is_its_formula(name: Activation) -> None:
    points = [-45.0, -3.0, -0.2, 0.0, 0.7, 5.0, 21.0, 39.9, 40.1]
    found = activation_layer(name)(torch.tensor(points, dtype=torch.float64))
    assert found.tolist() == pytest.approx([FORMULAS[name](x) for x in points], rel=1e-13, abs=1e-18)


def test_softplus_is_smooth_to_the_rounding_of_float64() -> None:
    """PyTorch's own switches to the identity at 20, where the slope jumps by 2e-9."""
    points = torch.linspace(15, 45, 30_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(activation_layer("softplus")(points).sum(), points)
    assert (slope - torch.sigmoid(points)).abs().max() < 1e-15


@each_victim
def test_the_published_activation_is_the_default_and_nothing_moved(
    build: Callable[..., Victim], name: str, own: Activation
) -> None:
    victim = build()
    assert victim.fingerprint() == build(activation=own).fingerprint()
    assert (victim.architecture, len(activations_of(victim))) == (name, 1)
    assert victim.fingerprint()["weights_sha256"] == PUBLISHED[name]


@each_victim
def test_another_activation_changes_the_name_and_the_logits_but_not_the_weights(
    build: Callable[..., Victim], name: str, own: Activation
) -> None:
    other: Activation = "silu" if own == "relu" else "relu"
    first, second = build().eval(), build(activation=other).eval()
    images = torch.rand(1, 3, 32, 32)
    assert second.architecture == f"{name}-{other}"
    changed = {key for key, value in first.fingerprint().items() if second.fingerprint()[key] != value}
    assert changed == {"architecture"}
    assert activations_of(second) == {nn.SiLU if other == "silu" else nn.ReLU}
    with torch.no_grad():
        assert not torch.allclose(first(images), second(images), rtol=1e-3)


def test_further_settings_stay_in_the_name() -> None:
    assert lenet(convolutions=4, activation="relu").architecture == "lenet4-relu"
    assert mlp(width=8, activation="gelu").architecture == "mlp8-gelu"


@pytest.mark.parametrize("activation", get_args(Activation))
def test_convnet64_pools_by_the_mean_where_it_is_smooth(activation: Activation) -> None:
    pools = {type(module) for module in convnet64(activation=activation).modules() if "Pool" in type(module).__name__}
    assert pools == ({nn.MaxPool2d} if activation == "relu" else {nn.AvgPool2d})


def test_an_unknown_activation_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="activation is 'swish'; choose relu, sigmoid, softplus, silu, gelu"):
        lenet(activation="swish")  # type: ignore[arg-type]


def test_weights_of_one_activation_are_not_taken_for_those_of_another(tmp_path: Any) -> None:
    path = save_weights(lenet(activation="relu"), tmp_path / "relu.safetensors")
    with pytest.raises(WeightsError, match="is of lenet-relu, not lenet"):
        load_weights(lenet(), path)


def test_activations_are_configured_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--victim", type=Victim)
    tree = {"class_path": "gibench.victims.resnet20", "init_args": {"activation": "softplus"}}
    victim = parser.instantiate(parser.parse_object({"victim": tree})).victim
    assert victim.architecture == "resnet20-softplus"
