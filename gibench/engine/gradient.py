"""Gradients of U independent batches at once, in the way that serves any module: what clients send, attackers simulate.

That way is `vmap(grad)` with shared parameters, at the price of U copies of the gradient. `LocalGradient` also says
what it is made of, so that a back end of the engine can compute the same numbers another way.
"""

from collections.abc import Callable
from copy import deepcopy

from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gibench.engine.affine import SeparateAffine
from gibench.errors import ShapeError
from gibench.types import Simulate, Update
from gibench.victims import Victim

Parameters = dict[str, Tensor]


class LocalGradient:
    """images (U, B, C, H, W), labels (U, B) or (U, B, K) -> scale * gradient of the mean cross-entropy, per update.

    Args:
        victim: the model, at the weights that the server sent, in the client's BatchNorm regime.
        scale: factor on the gradient; the rate of a single local step.
    """

    def __init__(self, victim: Victim, *, scale: float = 1.0) -> None:
        self.victim = victim
        self.scale = scale
        self.single: LocalGradient | None = None
        """The same in float32, made when it is asked for."""

    def __call__(self, images: Tensor, labels: Tensor) -> Update:
        """Return the updates, per parameter (U, *shape); differentiable in images and in soft labels."""
        parameters, gradient = weights(self.victim), batch_gradient(self.victim)
        update = for_each_update(lambda image, label: gradient(parameters, image, label), images, labels)
        return update if self.scale == 1 else {name: self.scale * value for name, value in update.items()}


def batch_gradient(victim: Victim) -> Callable[[Parameters, Tensor, Tensor], Update]:
    """Return (parameters, images (B, C, H, W), labels (B,) or (B, K)) -> gradient of the mean cross-entropy."""
    buffers = dict(victim.named_buffers())

    def loss(parameters: Parameters, images: Tensor, labels: Tensor) -> Tensor:
        with SeparateAffine():
            logits = functional_call(victim, (parameters, buffers), (images,))
        return F.cross_entropy(logits, labels)

    gradient: Callable[[Parameters, Tensor, Tensor], Update] = grad(loss)
    return gradient


def weights(victim: Victim) -> Parameters:
    """The victim's parameters, as the functions here take them."""
    return dict(victim.named_parameters())


def for_each_update(function: Callable[[Tensor, Tensor], Update], images: Tensor, labels: Tensor) -> Update:
    """Apply `function` (images (B, C, H, W), labels (B,) or (B, K)) to each of U batches; stack what it returns."""
    check_size(images)
    updates: Update = vmap(function)(images, labels)
    return updates


def check_size(images: Tensor) -> None:
    """Raise ShapeError for images (U, B, C, H, W) without an update, an image or a pixel."""
    if images.ndim != 5 or 0 in images.shape:
        raise ShapeError(f"images have shape {tuple(images.shape)}; pass (U, B, C, H, W), none of them zero.")


def in_single(simulate: Simulate) -> Simulate | None:
    """Return the same gradient computed in float32; None where nobody knows how the client could be rounded."""
    if not isinstance(simulate, LocalGradient):
        return None
    if simulate.single is None:
        simulate.single = LocalGradient(deepcopy(simulate.victim).float(), scale=simulate.scale)
    return simulate.single
