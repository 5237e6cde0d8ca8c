"""Training under a defense: the gradient of each step is what one client sends of the step's batch."""

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from gibench.defenses import Defense, Private
from gibench.errors import ConfigurationError
from gibench.types import Update
from gibench.victims.base import Victim


def check_defended(victim: Victim, defense: Defense) -> None:
    """Raise ConfigurationError where a victim cannot be trained on what clients with that defense send."""
    if any(isinstance(layer, _BatchNorm) for layer in victim.modules()):
        raise ConfigurationError(
            f"{victim.architecture} has BatchNorm layers, whose running statistics no defended gradient moves; choose "
            "a victim with GroupNorm or without normalization."
        )
    defense.check(victim, "gradient")


def released_gradient(
    victim: Victim, defense: Defense, images: Tensor, labels: Tensor, *, seed: int
) -> dict[str, Tensor]:
    """Return what one client with the defense sends, at the present weights in evaluation mode, as clients compute it.

    Args:
        victim: the model; its dropout is off.
        defense: of the client.
        images: (N, C, H, W) in [0, 1].
        labels: (N,).
        seed: decides what the defense draws.

    Returns:
        Per parameter, of its shape.
    """
    training = victim.training
    victim.eval()
    with torch.no_grad():
        private = Private(images[None], labels[None], (seed,), victim, _Gradient(victim))
        update = defense.sample(private).update
    victim.train(training)
    return {name: value[0] for name, value in update.items()}


class _Gradient:
    """images (U, B, C, H, W), labels (U, B) or (U, B, K) -> gradients of the mean cross-entropy, per update.

    Weights are differentiated once only, so that this needs nothing of what the engine does about second derivatives.
    """

    def __init__(self, victim: Victim) -> None:
        self.victim = victim

    def __call__(self, images: Tensor, labels: Tensor) -> Update:
        """Return the updates, per parameter (U, *shape)."""
        buffers = dict(self.victim.named_buffers())

        def loss(parameters: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(self.victim, (parameters, buffers), (images,)), labels)

        updates: Update = vmap(grad(loss), in_dims=(None, 0, 0))(dict(self.victim.named_parameters()), images, labels)
        return updates
