"""Any network by dotted path, and what the error says where there is none."""

from typing import Any

import pytest
import torch
from torch import nn

from gibench.errors import ConfigurationError, WeightsError
from gibench.victims import by_path


def test_by_path_builds_a_torchvision_model() -> None:
    victim = by_path("torchvision.models.resnet18", num_classes=7, image_shape=(3, 64, 64))
    assert victim.architecture == "torchvision.models.resnet18"
    assert (victim.stage, victim.training_steps) == ("initial", 0)
    assert victim.training
    # ResNet-18 for ImageNet has 11,689,512 parameters, 513,000 of them in its head of 1,000 classes.
    assert victim.fingerprint()["parameters"] == 11_689_512 - 513_000 + 513 * 7
    again = by_path("torchvision.models.resnet18", num_classes=7, image_shape=(3, 64, 64))
    assert victim.fingerprint() == again.fingerprint()
    assert torch.equal(victim.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_by_path_hands_on_arguments() -> None:
    small: dict[str, Any] = {"image_shape": (3, 64, 64), "num_classes": 10}
    victim = by_path("torchvision.models.squeezenet1_1", arguments={"dropout": 0.25}, **small)
    assert [module.p for module in victim.modules() if isinstance(module, nn.Dropout)] == [0.25]


def unreachable(num_classes: int, weights: str) -> nn.Module:
    raise OSError(f"no network for {weights} of {num_classes} classes")


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("torchvision.models.resnet19", {}, "nothing stands at"),
        ("torchvisions.models.resnet18", {}, "nothing stands at"),
        ("resnet18", {}, "nothing stands at"),
        ("torchvision.models.__name__", {}, "is a str"),
        ("torchvision.models.resnet18", {"arguments": {"depth": 3}}, "refuses the arguments"),
        ("torchvision.models.resnet18", {"arguments": {"weights": "DEFAULT"}}, "say which with stage"),
        ("builtins.dict", {}, "returns a dict"),
        ("torchvision.models.resnet18", {"image_shape": (1, 32, 32), "mean": (0.0,)}, "cannot read images"),
        ("torchvision.ops.MLP", {"arguments": {}}, "refuses the arguments"),
        ("torchvision.models.resnet18", {"arguments": {"num_classes": 5}, "image_shape": (3, 32, 32)}, r"\(1, 5\)"),
    ],
)
def test_by_path_says_what_is_wrong(path: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        by_path(path, **options)
    assert "\n" not in str(raised.value)


def test_by_path_says_that_weights_are_out_of_reach() -> None:
    with pytest.raises(WeightsError, match="could not fetch its weights"):
        by_path(f"{__name__}.unreachable", arguments={"weights": "DEFAULT"}, stage="converged")
