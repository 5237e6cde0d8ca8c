"""Inner products of simulated and observed updates: all that distances by length and direction need to know."""

from typing import NamedTuple

from torch import Tensor

from gibench.types import Update


class Products(NamedTuple):
    """Per parameter name, each (U,): what a back end may compute without ever holding the simulated update.

    cross: <g(x), g>. simulated: <g(x), g(x)>. observed: <g, g>.
    """

    cross: dict[str, Tensor]
    simulated: dict[str, Tensor]
    observed: dict[str, Tensor]


def products(simulated: Update, observed: Update) -> Products:
    """Multiply two updates with the same names and shapes (U, *shape)."""
    return Products(
        cross={name: inner(simulated[name], observed[name]) for name in observed},
        simulated={name: inner(simulated[name], simulated[name]) for name in observed},
        observed={name: inner(observed[name], observed[name]) for name in observed},
    )


def inner(left: Tensor, right: Tensor) -> Tensor:
    """Inner products of (U, *shape) and (U, *shape): (U,)."""
    return (left * right).flatten(1).sum(1)


def add_up(terms: dict[str, Tensor]) -> Tensor:
    """The sum over parameters, (U,)."""
    first, *others = terms.values()
    return sum(others, start=first)
