"""Three ways to compare the updates that dummy images would cause with the observed ones; one answer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from gibench.engine.gradient import LocalGradient
from gibench.engine.tape import Tape
from gibench.errors import BackendError, ShapeError
from gibench.likelihoods import Likelihood
from gibench.likelihoods.products import Products, inner
from gibench.types import Simulate, Update

Squares = dict[str, Tensor]
"""<g, g> of the observed update, per parameter (U,): computed once."""

NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Backend(ABC):
    """Computes -log p(g | x) for R rows, differentiable once in images and soft labels.

    The victim runs in the surrounding autocast precision; distances and their sums are in the observed update's type.
    """

    name: ClassVar[str]
    shares_restarts: ClassVar[bool] = False
    """Whether R rows may be compared with fewer observed updates U, each of them with R / U rows in a row."""

    @abstractmethod
    def __call__(
        self,
        likelihood: Likelihood,
        images: Tensor,
        labels: Tensor,
        observed: Update,
        squares: Squares,
        arguments: Mapping[str, Tensor] = NOTHING,
    ) -> Tensor:
        """Return (R,), lower is better.

        Args:
            likelihood: the distance.
            images: (R, B, C, H, W) in [0, 1].
            labels: (R, B) or (R, B, K).
            observed: name -> (U, *shape), R rows for R updates unless restarts are shared.
            squares: their <g, g>.
            arguments: what the client's update takes besides, (R, ...), by name.
        """


class GenericBackend(Backend):
    """`vmap(grad)`: for any module, and for clients of several local steps.

    Args:
        simulate: the client's update.
    """

    name = "generic"

    def __init__(self, simulate: Simulate) -> None:
        self.simulate = simulate

    def __call__(
        self,
        likelihood: Likelihood,
        images: Tensor,
        labels: Tensor,
        observed: Update,
        squares: Squares,
        arguments: Mapping[str, Tensor] = NOTHING,
    ) -> Tensor:
        """See `Backend`."""
        return compare(likelihood, self.simulate(images, labels, **arguments), observed, squares)


class RulesBackend(Backend):
    """Layer rules: one batch of R * B samples with shared, frozen weights, and each layer's gradients from its rule.

    Args:
        simulate: a gradient of a victim whose layers have rules.

    Raises:
        UnsupportedLayerError: naming what stands against it.
    """

    name = "rules"

    def __init__(self, simulate: LocalGradient) -> None:
        self.tape = Tape(simulate)

    def update(self, images: Tensor, labels: Tensor) -> Update:
        """Return the updates themselves, as `LocalGradient` does."""
        found = {}
        for entry in self.tape(images, labels):
            with precise(images):
                gradients = entry.rule.gradients(entry.inputs, entry.delta, len(images))
            for name, _ in entry.rule.layer.named_parameters():
                found[f"{entry.name}.{name}"] = gradients[name].to(images.dtype)
        return found

    def __call__(
        self,
        likelihood: Likelihood,
        images: Tensor,
        labels: Tensor,
        observed: Update,
        squares: Squares,
        arguments: Mapping[str, Tensor] = NOTHING,
    ) -> Tensor:
        """See `Backend`."""
        return compare(likelihood, self.update(images, labels), observed, squares)


class GramBackend(Backend):
    """Layer rules without the gradients: inner products from Gram matrices of inputs and deltas where that is cheaper.

    Args:
        simulate: as for `RulesBackend`.

    Raises:
        UnsupportedLayerError: naming what stands against it.
    """

    name = "gram"
    shares_restarts = True

    def __init__(self, simulate: LocalGradient) -> None:
        self.tape = Tape(simulate)

    def products(self, images: Tensor, labels: Tensor, observed: Update, squares: Squares) -> Products:
        """Return the inner products of R simulated updates with the observed ones and with themselves."""
        updates = len(next(iter(squares.values())))
        if len(images) % updates:
            raise ShapeError(f"{len(images)} rows do not divide among {updates} updates; give each the same restarts.")
        cross, simulated = {}, {}
        for entry in self.tape(images, labels):
            names = [name for name, _ in entry.rule.layer.named_parameters()]
            targets = {name: observed[f"{entry.name}.{name}"] for name in names}
            with precise(images):
                pairs = entry.rule.products(entry.inputs, entry.delta, len(images), targets)
            for name in names:
                cross[f"{entry.name}.{name}"], simulated[f"{entry.name}.{name}"] = pairs[name]
        restarts = len(images) // updates
        return Products(cross, simulated, {name: value.repeat_interleave(restarts) for name, value in squares.items()})

    def __call__(
        self,
        likelihood: Likelihood,
        images: Tensor,
        labels: Tensor,
        observed: Update,
        squares: Squares,
        arguments: Mapping[str, Tensor] = NOTHING,
    ) -> Tensor:
        """See `Backend`."""
        products = self.products(images, labels, observed, squares)
        with precise(images):
            return likelihood.of_products(products)


BACKENDS = {backend.name: backend for backend in (GenericBackend, RulesBackend, GramBackend)}


def compare(likelihood: Likelihood, simulated: Update, observed: Update, squares: Squares) -> Tensor:
    """Compare updates that are at hand, without computing <g, g> again."""
    first = next(iter(observed.values()))
    with precise(first):
        simulated = {name: value.to(first.dtype) for name, value in simulated.items()}
        if likelihood.reads != "products" or likelihood.cancels:
            distance: Tensor = likelihood(simulated, observed)
            return distance
        cross = {name: inner(simulated[name], observed[name]) for name in observed}
        own = {name: inner(simulated[name], simulated[name]) for name in observed}
        return likelihood.of_products(Products(cross, own, squares))


def build(name: str, simulate: Simulate, likelihood: Likelihood) -> Backend:
    """Build the back end of that name.

    Raises:
        BackendError: when it cannot serve the client, the victim or the likelihood.
    """
    if name == "generic":
        return GenericBackend(simulate)
    if not isinstance(simulate, LocalGradient):
        raise BackendError(f"back end {name!r} simulates one gradient at the server's weights; this client does more.")
    if name == "gram" and likelihood.reads != "products":
        raise BackendError(
            f"back end 'gram' serves distances made of inner products; {type(likelihood).__name__} is none."
        )
    return GramBackend(simulate) if name == "gram" else RulesBackend(simulate)


@contextmanager
def precise(like: Tensor) -> Iterator[None]:
    """Leave the surrounding autocast for a moment."""
    with torch.autocast(like.device.type, enabled=False):
        yield
