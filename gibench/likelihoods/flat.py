"""Flat likelihood: the update says nothing. With it an attack shows what its prior alone would answer (rule R5)."""

from torch import Tensor

from gibench.likelihoods.base import Likelihood
from gibench.types import Update


class Flat(Likelihood):
    """-log p(g | x) = 0 for every x."""

    reads = "nothing"

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`; `simulated` may be empty."""
        first = next(iter(observed.values()))
        return first.new_zeros(len(first))

    def residuals(self, simulated: Update, observed: Update) -> Update:
        """See `Likelihood`: one name, and no numbers under it; `simulated` may be empty."""
        first = next(iter(observed.values()))
        return {"flat": first.new_zeros(len(first), 0)}

    def compared(self, observed: Update) -> Update:
        """See `Likelihood`: nothing."""
        return {}
