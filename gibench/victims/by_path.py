"""Any network by dotted path: torchvision's models, timm's, or the user's own."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gibench.errors import ConfigurationError, WeightsError
from gibench.victims.base import Stage, Victim, seeded
from gibench.victims.normalization import IMAGENET_MEAN, IMAGENET_STD


def by_path(
    path: str,
    *,
    seed: int = 0,
    num_classes: int = 1000,
    image_shape: tuple[int, int, int] = (3, 224, 224),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    arguments: dict[str, Any] | None = None,
    stage: Stage | None = None,
    training_steps: int | None = None,
    test_accuracy: float | None = None,
) -> Victim:
    """Call what stands at `path` with `num_classes` and `arguments`, and wrap the network that it returns.

    Args:
        path: of a callable that takes `num_classes` and returns an `nn.Module`, e.g. "torchvision.models.resnet18".
        seed: decides the weights, alone.
        num_classes: number of logits; handed to the callable.
        image_shape: (C, H, W).
        mean: per channel; ImageNet's by default.
        std: per channel; ImageNet's by default.
        arguments: more keyword arguments, e.g. {"weights": "DEFAULT"}, for torchvision to download trained weights.
        stage: how far the weights are trained; required with `weights` or `pretrained` in the arguments, else initial.
        training_steps: SGD steps behind trained weights, where known.
        test_accuracy: of trained weights, in [0, 1], where known.

    Raises:
        ConfigurationError: the path leads nowhere, the callable refuses the arguments or returns no network, or the
            network does not map images of `image_shape` to `num_classes` logits.
        WeightsError: the callable could not fetch its weights.
    """
    arguments = arguments or {}
    given = arguments.get("weights") or arguments.get("pretrained")
    if given and stage is None:
        raise ConfigurationError(f"{path} gets trained weights ({given}): say which with stage: trained or converged.")
    network = _build(path, seed, {"num_classes": num_classes, **arguments})
    _probe(network, path, image_shape, num_classes)
    return Victim(
        network,
        architecture=path,
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"weights {given} of {path}" if given else f"default of {path}, seed {seed}",
        training_steps=0 if stage is None else training_steps,
        stage=stage or "initial",
        test_accuracy=test_accuracy,
    )


def _locate(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"nothing stands at {path!r} ({error}); give the full dotted path of a callable, "
            "e.g. torchvision.models.resnet18."
        ) from error
    if not callable(found):
        raise ConfigurationError(f"{path!r} is a {type(found).__name__}; give the dotted path of a class or function.")
    return found  # type: ignore[no-any-return]


def _build(path: str, seed: int, arguments: dict[str, Any]) -> nn.Module:
    build = _locate(path)
    try:
        network = seeded(lambda: build(**arguments), seed)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigurationError(f"{path} refuses the arguments {arguments}: {error}; change `arguments`.") from error
    except OSError as error:
        raise WeightsError(f"{path} could not fetch its weights: {error}; load a file with load_weights.") from error
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            f"{path} returns a {type(network).__name__}; name a callable that returns an nn.Module."
        )
    return network


def _probe(network: nn.Module, path: str, image_shape: tuple[int, int, int], num_classes: int) -> None:
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            logits = network(torch.zeros(1, *image_shape))
    except (RuntimeError, AssertionError) as error:  # torchvision's ViT asserts its image size
        raise ConfigurationError(
            f"{path} cannot read images of shape {image_shape}: {error}; set image_shape."
        ) from error
    finally:
        network.train(training)
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != (1, num_classes):
        raise ConfigurationError(
            f"{path} maps one image to {found} in place of (1, {num_classes}) logits; set num_classes and arguments."
        )
