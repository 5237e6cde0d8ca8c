"""Before a faster back end is trusted with a victim, it must give the generic one's numbers."""

from copy import deepcopy

import torch
from torch import Tensor

from gibench.engine.backends import Backend, GenericBackend, build, precise
from gibench.engine.gradient import LocalGradient
from gibench.errors import BackendError
from gibench.likelihoods import Likelihood
from gibench.likelihoods.products import inner
from gibench.seeding import uniform_rows

_EXACT, _ROUNDED = 1e-9, 1e-2  # relative; in float64, and where the victim insists on its own type


def verify(name: str, simulate: LocalGradient, likelihood: Likelihood, batch_size: int) -> None:
    """Compare distance and image derivative of the back end with `vmap(grad)`, on two updates of random images.

    In float64, so that no ReLU falls on the other side; with the batch size of the attack, at most 2.

    Raises:
        BackendError: when they differ, as for a victim that reads the weights of its layers past the layers.
    """
    with precise(simulate.victim.mean):
        _verify(name, simulate, likelihood, batch_size)


def _verify(name: str, simulate: LocalGradient, likelihood: Likelihood, batch_size: int) -> None:
    try:
        victim, tolerance = deepcopy(simulate.victim).double(), _EXACT
        victim(victim.mean.new_full((2, *victim.image_shape), 0.5))
    except (RuntimeError, TypeError):  # a type or a device that has no float64
        victim, tolerance = simulate.victim, _ROUNDED
    exact = LocalGradient(victim, scale=simulate.scale)
    size = min(batch_size, 2)
    images, others = (
        uniform_rows((size, *victim.image_shape), seeds, "verify").to(victim.mean) for seeds in ((0, 1), (2, 3))
    )
    labels = torch.arange(2 * size, device=images.device).reshape(2, size) % victim.num_classes
    observed = {key: value.detach() for key, value in exact(others, labels).items()}
    expected = _differentiate(GenericBackend(exact), likelihood, images, labels, observed)
    found = _differentiate(build(name, exact, likelihood), likelihood, images, labels, observed)
    for what, left, right in zip(("distance", "image derivative"), found, expected, strict=True):
        error = ((left - right).norm() / right.norm()).item()
        if not error <= tolerance:
            raise BackendError(f"back end {name!r} gives another {what} than the generic one (off by {error:.1e}).")


def _differentiate(
    backend: Backend, likelihood: Likelihood, images: Tensor, labels: Tensor, observed: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    squares = {name: inner(value, value) for name, value in observed.items()}
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        distance = backend(likelihood, leaf, labels, observed, squares)
        (derivative,) = torch.autograd.grad(distance.sum(), leaf)
    return distance.detach(), derivative
