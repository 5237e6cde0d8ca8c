"""One pass of U batches through a victim as one batch of N = U * B samples, and the loss's derivative by layer."""

from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.engine.gradient import LocalGradient, check_size
from gibench.engine.rules import Rule, UnsupportedLayerError, is_layer, rule_of
from gibench.victims import Victim


class Entry(NamedTuple):
    """One layer's share of a pass: what its rule makes gradients of, (N, ...) both."""

    name: str
    rule: Rule[Any]
    inputs: Tensor
    delta: Tensor


class Tape:
    """Runs a victim whose layers all have rules.

    The victim is copied without its weights, which are shared, and the forward of each layer is replaced by its rule's.
    Operations that overwrite a layer's input or output would silently change what is captured; they are found in a
    first pass, and those tensors are cloned from then on. What mixes the samples of a batch outside its layers is not
    seen here: `verify` finds it, without which no tape is to be trusted.

    Args:
        simulate: the gradient to simulate.

    Raises:
        UnsupportedLayerError: naming the first layer without a rule, or weights that several layers share.
    """

    def __init__(self, simulate: LocalGradient) -> None:
        for name, module in simulate.victim.named_modules():
            if is_layer(module):
                rule_of(name, module)  # before the copy, which some layers without a rule do not survive
        self.scale = simulate.scale
        self.victim = _without_weights(simulate.victim)
        self.cloned: set[str] = set()
        self._updates = 0
        self._captured: dict[str, tuple[Tensor, Tensor]] = {}
        self._versions: dict[str, tuple[int, int]] = {}
        _refuse_shared_weights(simulate.victim)
        self.rules = {name: rule_of(name, module) for name, module in self.victim.named_modules() if is_layer(module)}
        for name, rule in self.rules.items():
            rule.layer.forward = partial(self._layer, name)
        self._find_overwritten()

    def __call__(self, images: Tensor, labels: Tensor) -> list[Entry]:
        """Run images (U, B, C, H, W) with labels (U, B) or (U, B, K); the entries are differentiable in both."""
        check_size(images)
        if not images.requires_grad:
            images = images.detach().requires_grad_()
        with torch.enable_grad():
            losses = self._losses(images, labels)
            loss = self.scale * losses.sum() / images.shape[1]
            outputs = [output for _, output in self._captured.values()]
            deltas = torch.autograd.grad(loss, outputs, create_graph=True, materialize_grads=True)
        captured = zip(self._captured.items(), deltas, strict=True)
        entries = [Entry(name, self.rules[name], inputs, delta) for (name, (inputs, _)), delta in captured]
        self._captured = {}
        return entries

    def shapes(self, images: Tensor) -> dict[str, tuple[torch.Size, torch.Size]]:
        """Run images (U, B, C, H, W) and return layer name -> shapes of what was captured and of the output."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            self._losses(images, torch.zeros(images.shape[:2], dtype=torch.int64, device=images.device))
        found = {name: (inputs.shape, output.shape) for name, (inputs, output) in self._captured.items()}
        self._captured = {}
        return found

    def _losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of each sample, (N,); leaves what the layers captured in `_captured`."""
        self._updates, self._captured = len(images), {}
        logits = self.victim(images.flatten(0, 1))
        return F.cross_entropy(logits.to(images.dtype), labels.flatten(0, 1), reduction="none")

    def _layer(self, name: str, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        """Stand in for the forward of the layer `name`."""
        inputs = input
        if name in self._captured:
            raise UnsupportedLayerError(f"{name} runs more than once in a pass.")
        if name in self.cloned:
            inputs = inputs.clone()
        captured = self.rules[name].forward(inputs, self._updates)
        if torch.is_grad_enabled() and not captured.inputs.requires_grad:
            raise UnsupportedLayerError(f"{name} does not see the images.")
        self._captured[name] = (captured.inputs, captured.output)
        self._versions[name] = (captured.inputs._version, captured.output._version)
        return captured.output.clone() if name in self.cloned else captured.output

    def _find_overwritten(self) -> None:
        """Run once, and mark the layers whose captured tensors somebody has written to since."""
        for module in self.victim.modules():
            if isinstance(getattr(module, "inplace", None), bool):
                module.__dict__["inplace"] = False
        reference = self.victim.mean
        image = torch.full((1, 2, *self.victim.image_shape), 0.5, dtype=reference.dtype, device=reference.device)
        with torch.no_grad(), torch.autocast(reference.device.type, enabled=False):
            self._losses(image, torch.zeros(1, 2, dtype=torch.int64, device=reference.device))
        now = {name: (inputs._version, output._version) for name, (inputs, output) in self._captured.items()}
        self.cloned = {name for name, versions in now.items() if versions != self._versions[name]}
        missing = set(self.rules) - set(self._captured)
        self._captured = {}
        if missing:
            raise UnsupportedLayerError(f"{min(missing)} did not run in a pass.")


def _without_weights(victim: Victim) -> Victim:
    """Copy the modules and share the tensors."""
    tensors = [*victim.parameters(), *victim.buffers()]
    return deepcopy(victim, {id(tensor): tensor for tensor in tensors})


def _refuse_shared_weights(victim: nn.Module) -> None:
    seen: dict[int, str] = {}
    for name, parameter in victim.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            raise UnsupportedLayerError(f"{seen[id(parameter)]} and {name} are the same weights.")
        seen[id(parameter)] = name
