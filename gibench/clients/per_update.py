"""The seam between clients and the gradient engine: gradients of U independent batches at once.

Today one generic way, `vmap(grad)` with shared parameters: it works for any module, at the price of U copies of the
gradient. Faster ways for known layers go behind these two functions; nothing else differentiates the victim.
"""

from collections.abc import Callable

from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gibench.types import Update
from gibench.victims import Victim

Parameters = dict[str, Tensor]


def batch_gradient(victim: Victim) -> Callable[[Parameters, Tensor, Tensor], Update]:
    """Return (parameters, images (B, C, H, W), labels (B,) or (B, K)) -> gradient of the mean cross-entropy."""
    buffers = dict(victim.named_buffers())

    def loss(parameters: Parameters, images: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(victim, (parameters, buffers), (images,))
        return F.cross_entropy(logits, labels)

    gradient: Callable[[Parameters, Tensor, Tensor], Update] = grad(loss)
    return gradient


def weights(victim: Victim) -> Parameters:
    """The victim's parameters, as the functions here take them."""
    return dict(victim.named_parameters())


def for_each_update(function: Callable[[Tensor, Tensor], Update], images: Tensor, labels: Tensor) -> Update:
    """Apply `function` (images (B, C, H, W), labels (B,) or (B, K)) to each of U batches; stack what it returns."""
    updates: Update = vmap(function)(images, labels)
    return updates
