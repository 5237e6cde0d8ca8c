"""What all networks promise."""

from typing import Any

import pytest
import torch

from gibench.errors import ConfigurationError
from inverters.base import Inverter
from inverters.card import NETWORKS, build

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": 16},
    "convolutional": {"hidden": 16, "channels": 16},
    "set": {"model": 16, "heads": 2, "encoders": 1, "decoders": 1, "hidden": 16},
}


def network(name: str, *, slots: int = 3, **settings: Any) -> Inverter:
    torch.manual_seed(0)
    return build(name, SMALL[name] | settings, tokens=4, width=10, image_shape=(3, 16, 8), slots=slots)


def test_every_network_is_in_the_table() -> None:
    assert SMALL.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_slots_have_their_shapes_and_every_weight_a_derivative(name: str) -> None:
    made = network(name)
    slots = made(torch.randn(5, 4, 10))
    assert slots.images.shape == (5, 3, 3, 16, 8)
    assert ((slots.images >= 0) & (slots.images <= 1)).all()
    assert (slots.existence is None) == (name != "set")
    total = slots.images.square().sum() + (0 if slots.existence is None else slots.existence.sum())
    total.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in made.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_does_not_depend_on_the_others(name: str) -> None:
    made, features = network(name).eval(), torch.randn(6, 4, 10)
    together, alone = made(features).images, torch.cat([made(row[None]).images for row in features])
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_settings_that_do_not_exist_are_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match="depth"):
        network(name, depth=3)


def test_what_does_not_fit() -> None:
    with pytest.raises(ConfigurationError, match="choose one of mlp, convolutional, set"):
        build("perceptron", {}, tokens=1, width=1, image_shape=(3, 8, 8), slots=1)
    with pytest.raises(ConfigurationError, match="multiples of 8"):
        network("convolutional", channels=12)
    with pytest.raises(ConfigurationError, match="multiple of the 3 heads"):
        network("set", heads=3)
