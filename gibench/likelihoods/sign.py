"""Likelihood of sign compression (signSGD): the observed entries are -1, 0 or 1."""

import torch
from torch import Tensor
from torch.nn import functional as F

from gibench.errors import ConfigurationError
from gibench.likelihoods.base import Likelihood
from gibench.likelihoods.products import add_up
from gibench.types import Update


class Sign(Likelihood):
    """-sum_j log sigmoid(g_j g_j(x) / (temperature * rms_l)): the logistic form of prod_j 1[sign g_j(x) = g_j].

    rms_l is the root mean square of the simulated entries of tensor l, taken as a constant: it makes the temperature
    free of scale, and no image gains by a longer update. Entries with g_j = 0 say g_j(x) = 0, as dead units do; there
    the logistic says nothing, and -log 0.5 is the constant that is left out.

    Args:
        temperature: towards 0 the figure counts wrong signs, weighted by how wrong they are.
    """

    def __init__(self, *, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigurationError(f"temperature is {temperature}; it must be positive.")
        self.temperature = temperature

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`."""
        return add_up({name: self._entries(simulated[name], value) for name, value in observed.items()})

    def residuals(self, simulated: Update, observed: Update) -> Update:
        r"""See `Likelihood`: sqrt(h) (z - 1 / (2 h)) with z = g g(x) / (temperature * rms), h = tanh(z / 2) / (2 z).

        That parabola touches -log sigmoid(z) from above (Jaakkola and Jordan, 2000); entries with g = 0 are zero.
        """
        rows = {}
        for name, value in observed.items():
            margins = self._margins(simulated[name], value)
            place = margins.detach()
            bend = _bend(place)
            # In this form, since far on the right side of 0 both terms of the docstring's are alike, in all digits.
            parabola = bend.sqrt() * (margins - place) - torch.sigmoid(-place) * bend.rsqrt()
            rows[name] = torch.where(value.flatten(1) == 0, 0.0, parabola).reshape(value.shape)
        return rows

    def compared(self, observed: Update) -> Update:
        """See `Likelihood`: entries with a sign."""
        return {name: value != 0 for name, value in observed.items()}

    def _entries(self, simulated: Tensor, observed: Tensor) -> Tensor:
        terms = F.softplus(-self._margins(simulated, observed))
        return torch.where(observed.flatten(1) == 0, 0.0, terms).sum(1)

    def _margins(self, simulated: Tensor, observed: Tensor) -> Tensor:
        flat = simulated.flatten(1)
        rms = flat.detach().square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(flat.dtype).tiny)
        return observed.flatten(1) * flat / (self.temperature * rms)


def _bend(margins: Tensor) -> Tensor:
    """tanh(z / 2) / (2 z), 1/4 at 0."""
    small = margins.abs() < 1e-4
    safe = margins.masked_fill(small, 1.0)
    return torch.where(small, 0.25, (safe / 2).tanh() / (2 * safe))
