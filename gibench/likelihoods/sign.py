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

    def _entries(self, simulated: Tensor, observed: Tensor) -> Tensor:
        flat, signs = simulated.flatten(1), observed.flatten(1)
        rms = flat.detach().square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(flat.dtype).tiny)
        terms = F.softplus(-signs * flat / (self.temperature * rms))
        return torch.where(signs == 0, 0.0, terms).sum(1)
