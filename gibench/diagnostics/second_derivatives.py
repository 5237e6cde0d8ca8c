"""Can a victim be attacked at all? Its update must have a derivative, so its loss must have a second one."""

import re
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from gibench.errors import SecondDerivativeError, ShapeError, VictimError
from gibench.seeding import normal_rows, uniform_rows
from gibench.types import Update

_INDEPENDENT = (
    "the update does not depend on the images (its derivative is identically zero); "
    "look for detach, rounding, argmax or a dead layer in the victim."
)

# What torch says, and what to tell the user: {0} is the operation that the pattern captured.
_CAUSES = (
    (
        r"derivative for aten::(\w*(?:_scaled_dot_product|_attention)_\w+) is not implemented",
        "{0}: fused attention has no second derivative; run inside `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.",
    ),
    (
        r"derivative for aten::(hardsigmoid\w*) is not implemented",
        "{0}: nn.Hardsigmoid has no second derivative; replace it, for example by nn.Sigmoid.",
    ),
    (
        r"derivative for aten::(\w+) is not implemented",
        "{0} has no second derivative; replace the layer that calls it.",
    ),
    (
        r"do not yet support aten::(\w+)",
        "{0} cannot be computed for several updates at once (torch.vmap); replace the layer that calls it.",
    ),
    (
        r"called (random operation) ",
        "a {0} runs in evaluation mode; replace the layer that draws random numbers.",
    ),
    (
        r"must override the (setup_context) staticmethod",
        "an autograd.Function without {0} has no second derivative; "
        "switch reentrant checkpointing off (use_reentrant=False) or replace the custom function.",
    ),
    (r"(does not require grad)", _INDEPENDENT),
)


def probe_second_derivatives(
    victim: nn.Module, image_shape: tuple[int, int, int], num_classes: int, *, batch_size: int = 2
) -> None:
    r"""Differentiate a tiny update in its images, as every attack does, and raise where that fails.

    For two updates at once, with random images :math:`x`, labels :math:`y` and directions :math:`r`, it computes

    .. math:: \partial_x \sum_p \langle r_p, \nabla_p \ell(f(x; p), y) \rangle

    through `vmap(grad)` and an outer backward pass, on a copy of the victim in evaluation mode. The victim and the
    global random state stay as they are.

    Args:
        victim: images (N, C, H, W) in [0, 1] -> logits (N, num_classes).
        image_shape: (C, H, W).
        num_classes: number of logits.
        batch_size: images behind each update.

    Raises:
        SecondDerivativeError: naming the operation without a second derivative; or the result is zero or not finite.
        VictimError: when its forward draws random numbers or changes its buffers, even in evaluation mode.
        ShapeError: when the victim does not take such images, or has another number of logits.
    """
    victim = deepcopy(victim).eval()
    parameter = next(victim.parameters(), None)
    if parameter is None:
        raise SecondDerivativeError("the victim has no parameters, so it sends no update; give it one layer to train.")
    images = uniform_rows((batch_size, *image_shape), (0, 1), "images").to(parameter).requires_grad_()
    labels = torch.arange(2 * batch_size, device=parameter.device).reshape(2, batch_size) % num_classes
    devices = [parameter.device] if parameter.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        _check_forward(victim, images[0].detach(), num_classes)
        try:
            gradient = _image_gradient(victim, images, labels)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise SecondDerivativeError(_explain(str(error))) from error
        _check_repeatable(victim, images[0].detach())
    _check_gradient(gradient)


def _check_forward(victim: nn.Module, images: Tensor, num_classes: int) -> None:
    try:
        with torch.no_grad():
            shape = tuple(victim(images).shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = _first_line(str(error))
        raise ShapeError(
            f"the victim does not take images of shape {tuple(images.shape[1:])} ({reason}); set its image size."
        ) from error
    if shape != (len(images), num_classes):
        raise ShapeError(f"the victim returns {shape} for {len(images)} images; set num_classes to its logits.")
    before = {name: buffer.clone() for name, buffer in victim.named_buffers()}
    with torch.no_grad():
        victim(images)
    changed = [name for name, buffer in victim.named_buffers() if not torch.equal(buffer, before[name])]
    if changed:
        raise VictimError(f"the victim's forward changes its buffer {changed[0]} in evaluation mode; make it constant.")


def _check_repeatable(victim: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        first, second = victim(images), victim(images)
    if not torch.equal(first.nan_to_num(), second.nan_to_num()):
        raise VictimError("the victim gives two answers for one image in evaluation mode; remove what is random in it.")


def _image_gradient(victim: nn.Module, images: Tensor, labels: Tensor) -> Tensor | None:
    parameters = {name: value.detach() for name, value in victim.named_parameters()}
    buffers = dict(victim.named_buffers())

    def loss(parameters: Update, images: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(functional_call(victim, (parameters, buffers), (images,)), labels)

    update: Update = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    # A projection rather than a norm: squares of an untrained deep network's tiny gradients underflow to zero.
    projections = [
        (value * normal_rows(value.shape[1:], (0, 1), name).to(value)).sum() for name, value in update.items()
    ]
    (gradient,) = torch.autograd.grad(torch.stack(projections).sum(), images, allow_unused=True)
    return gradient


def _check_gradient(gradient: Tensor | None) -> None:
    if gradient is None or not gradient.any():
        raise SecondDerivativeError(_INDEPENDENT)
    if not torch.isfinite(gradient).all():
        raise SecondDerivativeError(
            "the second derivative of the victim is NaN or infinite; look for a square root, norm or division at zero."
        )


def _explain(message: str) -> str:
    for pattern, advice in _CAUSES:
        if found := re.search(pattern, message):
            return advice.format(found[1])
    return f"the victim cannot be differentiated twice: {_first_line(message)}"


def _first_line(message: str) -> str:
    return message.strip().split("\n")[0].rstrip(".")
