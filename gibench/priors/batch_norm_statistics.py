"""BatchNorm statistics: what the victim's layers see resembles what they saw (DeepInversion, Yin et al., CVPR 2020)."""

from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _BatchNorm

from gibench.errors import ConfigurationError, RefusalError
from gibench.needs import Needs
from gibench.priors.base import Prior
from gibench.types import Observation

Statistics = Literal["running", "exact", "proxy"]
REGIMES = {"running": ("eval",), "exact": ("shared",), "proxy": ("private", "shared")}
"""Statistics -> the BatchNorm regimes of the threat model in which they are at hand and are what is meant."""
FLOOR = 1e-3  # of the known deviations: a smaller distance weighs in least squares as one of this much


class BatchNormStatistics(Prior):
    r"""The batch's statistics at the input of each BatchNorm layer are near the known ones.

    .. math:: R(x) = w \sum_l w_l ( \lVert \mathrm{Var}(h_l) - v_l \rVert_2 + \lVert \mathrm{E}(h_l) - m_l \rVert_2 )

    with mean and biased variance per channel over the batch and all positions, un-squared norms over the channels,
    w_1 = `first` for the layer that runs first and 1 for the others, as in DeepInversion. Where the known ones are
    from decides what leaks, so that it is stated (rule R12):

    running: the running statistics, by which the victim normalizes in the regime "eval". They are averages over a
        population: of a small batch they say little, and of a victim that was never trained, whose running statistics
        are 0 and 1, they are wrong. The running variance is the unbiased one.
    exact: those of the private batch itself, in the regime "shared", two numbers for each channel. GradInversion and
        GIAS's `bn_prior` use them, breaching where the user provides buffers, GradAttack as `BN_exact`.
    proxy: the server's running statistics stand in for the batch's own, by which the client normalizes, in the regimes
        "private" and "shared" (`BN_proxy` of Huang et al., NeurIPS 2021).

    Args:
        weight: w, at least 0, relative to the likelihood's scale.
        statistics: which.
        first: w_1.

    Raises:
        RefusalError: when the victim has no BatchNorm layers, or keeps no running statistics that could stand in.
    """

    passes = 1

    def __init__(self, *, weight: float, statistics: Statistics = "running", first: float = 10.0) -> None:
        super().__init__()
        if statistics not in get_args(Statistics):
            raise ConfigurationError(f"statistics is {statistics!r}; choose {', '.join(get_args(Statistics))}.")
        if not weight >= 0 or not first >= 0:
            raise ConfigurationError(f"the weight is {weight} and that of the first layer {first}; both are >= 0.")
        self.weight = weight
        self.statistics = statistics
        self.first = first
        self.needs = Needs(batch_norm=(*REGIMES[statistics], "absent"))  # without BatchNorm it is the victim's fault

    def check(self, observation: Observation) -> None:
        """See `Prior`."""
        layers = batch_norm_layers(observation.victim)
        if not layers:
            raise RefusalError("the victim has no BatchNorm layers; leave BatchNormStatistics out (batch_norm: null).")
        if self.statistics == "proxy" and any(getattr(layer, "server_mean", None) is None for layer in layers.values()):
            raise RefusalError("the victim keeps no running statistics that could stand in; leave 'proxy' out.")

    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`."""
        found = input_statistics(observation.victim, images)
        total = images.new_zeros(len(images))
        for index, (name, statistics) in enumerate(found.items()):
            distance = (statistics - self._known(name, observation)).norm(dim=2).sum(1)
            total = total + (self.first if index == 0 else 1.0) * distance
        return self.weight * total

    def residuals(self, images: Tensor, observation: Observation) -> Tensor:
        """See `Prior`: differences of the statistics over the square root of their norm (IRLS).

        That norm is taken for at least 1e-3 of that of the known deviations, for the means, and of the known variances.
        """
        rows = []
        for index, (name, statistics) in enumerate(input_statistics(observation.victim, images).items()):
            known = self._known(name, observation)
            differences = statistics - known
            variances = known[..., 1, :].clamp_min(0)
            scales = torch.stack([variances.sqrt(), variances], -2).norm(dim=-1, keepdim=True)
            least = (FLOOR * scales).clamp_min(torch.finfo(scales.dtype).tiny)
            norms = torch.maximum(differences.detach().norm(dim=2, keepdim=True), least)
            weight = self.weight * (self.first if index == 0 else 1.0)
            rows.append(((weight / norms).sqrt() * differences).flatten(1))
        return torch.cat(rows, 1)

    def _known(self, name: str, observation: Observation) -> Tensor:
        """What the statistics of one layer are compared with: (U, 2, channels) or (2, channels)."""
        if self.statistics == "exact":
            return (observation.batch_statistics or {})[name]  # the threat model says that they are shared
        layer = observation.victim.get_submodule(name)
        owner = "running" if self.statistics == "running" else "server"
        return torch.stack([getattr(layer, f"{owner}_mean"), getattr(layer, f"{owner}_var")])


def batch_norm_layers(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}


def input_statistics(victim: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Mean and biased variance at the input of each BatchNorm layer, of each update's own batch, differentiable.

    Args:
        victim: in the client's BatchNorm regime; whatever that is, no update sees another's images.
        images: (U, B, C, H, W) in [0, 1].

    Returns:
        Layer name -> (U, 2, channels), in the order in which the layers run; of one that runs twice, the first time.
    """
    found: dict[str, Tensor] = {}

    def record(name: str, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        found.setdefault(name, torch.stack([values.mean(1), values.var(1, correction=0)]))

    def one(batch: Tensor) -> dict[str, Tensor]:
        found.clear()
        victim(batch)
        return dict(found)

    handles = [
        layer.register_forward_pre_hook(partial(record, name)) for name, layer in batch_norm_layers(victim).items()
    ]
    try:
        statistics: dict[str, Tensor] = vmap(one)(images)
    finally:
        for handle in handles:
            handle.remove()
    return statistics
