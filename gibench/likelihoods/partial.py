"""Partial gradient matching: some parameter tensors, weighed by their depth (Geiping et al., NeurIPS 2020)."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from math import exp
from typing import Literal, get_args

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Hypothesis, Likelihood
from gibench.likelihoods.products import Products, inner
from gibench.types import Observation, Update

Weights = Literal["equal", "linear", "exponential"]


class Partial(Likelihood):
    """A distance of chosen parameter tensors, each weighed by its depth: D(sqrt(w) g(x), sqrt(w) g).

    Every square and every inner product of tensor i so counts w_i times, which is how the code of Inverting Gradients
    weighs its squared and its cosine distance; its l1 distance it weighs by w_i, we by sqrt(w_i). Tensors are counted
    in the order of the victim's parameters, from the input on, and n counts all of them, chosen or not.

    Args:
        distance: D, which gets the chosen tensors alone.
        tensors: parameter names, or patterns such as `network.conv*`; each must match.
        first: the first so many tensors.
        last: the last so many.
        top: so many tensors of largest norm in the observed update, chosen for each update by itself; the others are
            compared as zeros on both sides. IG's code takes 10 for large victims.
        weights: "equal", w = 1; "linear", w_i = (n - i) / n for i = 0, 1, ..; "exponential", w_i = exp(-i). Both decay
            toward the output.

    At most one of `tensors`, `first`, `last` and `top`; without any, all tensors are compared.

    Raises:
        ConfigurationError: for settings that choose nothing or twice; on binding, when a pattern matches no parameter
            or the victim has fewer tensors.
    """

    def __init__(
        self,
        distance: Likelihood,
        *,
        tensors: Sequence[str] | None = None,
        first: int | None = None,
        last: int | None = None,
        top: int | None = None,
        weights: Weights = "equal",
    ) -> None:
        super().__init__()
        counts = {"first": first, "last": last, "top": top}
        given = {name: count for name, count in counts.items() if count is not None}
        if len(given) + (tensors is not None) > 1:
            raise ConfigurationError("partial matching takes one of tensors, first, last and top; choose one.")
        for name, count in given.items():
            if count < 1:
                raise ConfigurationError(f"{name} is {count}; compare at least 1 tensor.")
        if tensors is not None and not list(tensors):
            raise ConfigurationError("tensors is empty; name at least one parameter, or leave it out for all.")
        if weights not in get_args(Weights):
            raise ConfigurationError(f"weights is {weights!r}; choose one of {', '.join(get_args(Weights))}.")
        self.distance = distance
        self.tensors = None if tensors is None else tuple(tensors)
        self.first, self.last, self.top = first, last, top
        self.weights = weights
        self.needs = distance.needs
        self.reads = distance.reads
        self.cancels = distance.cancels

    def hypothesis(self, observation: Observation) -> Hypothesis:
        """See `Likelihood`."""
        names = list(observation.update)
        for pattern in self.tensors or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigurationError(f"the victim has no parameter {pattern!r}; name some of {', '.join(names)}.")
        for name, count in {"first": self.first, "last": self.last, "top": self.top}.items():
            if count is not None and count > len(names):
                raise ConfigurationError(f"{name} is {count}; the victim has {len(names)} parameter tensors.")
        seen = names if self.top is not None else self._chosen(names)
        self.distance.as_distance(
            observation.model_copy(update={"update": {name: observation.update[name] for name in seen}})
        )
        return Hypothesis(self, observation)

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        roots = self._roots(observed)
        distance: Tensor = self.distance(*(_times(roots, update) for update in (simulated, observed)))
        return distance

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`: those of the chosen tensors; with `top`, zero for the others."""
        roots = self._roots(observed)
        return self.distance.residuals(*(_times(roots, update) for update in (simulated, observed)))

    def compared(self, observed: Update) -> Update:
        """See `Likelihood`: the chosen tensors."""
        roots = self._roots(observed)
        masks = self.distance.compared(_times(roots, observed))
        return {name: mask & (_along(roots[name], mask.ndim) != 0) for name, mask in masks.items()}

    def of_products(self, products: Products) -> Tensor:
        """See `Likelihood`."""
        factors = self._factors(products.observed)
        return self.distance.of_products(Products(*(_times(factors, part) for part in products)))

    def _roots(self, observed: Update) -> dict[str, float | Tensor]:
        factors = self._factors({name: inner(value, value) for name, value in observed.items()})
        return {name: factor**0.5 for name, factor in factors.items()}

    def _factors(self, squares: dict[str, Tensor]) -> dict[str, float | Tensor]:
        """For each chosen tensor its w: a number, or (U,) where each update has its own choice, by its <g, g>."""
        names = list(squares)
        weights = {name: self._weight(index, len(names)) for index, name in enumerate(names)}
        if self.top is None:
            return {name: weights[name] for name in self._chosen(names)}
        lengths = torch.stack([squares[name] for name in names], 1)
        largest = torch.zeros_like(lengths).scatter(1, lengths.topk(self.top, 1).indices, 1.0)
        return {name: weights[name] * largest[:, index] for index, name in enumerate(names)}

    def _chosen(self, names: list[str]) -> list[str]:
        if self.tensors is not None:
            return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self.tensors)]
        return names[-self.last :] if self.last else names[: self.first]

    def _weight(self, index: int, count: int) -> float:
        if self.weights == "linear":
            return (count - index) / count
        return exp(-index) if self.weights == "exponential" else 1.0


def _times(factors: dict[str, float | Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The chosen tensors (U, *shape), each times its factor."""
    return {name: tensors[name] * _along(factor, tensors[name].ndim) for name, factor in factors.items()}


def _along(factor: float | Tensor, axes: int) -> float | Tensor:
    return factor.reshape(-1, *[1] * (axes - 1)) if isinstance(factor, Tensor) else factor
