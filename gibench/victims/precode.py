"""Victims with the variational bottleneck of PRECODE (Scheliga, Mäder and Seeland, WACV 2022).

The networks are those on which "Bayesian Framework for Gradient Leakage" (Balunović et al., ICLR 2022) breaks PRECODE,
but with the bottleneck of the defense's authors: that of the attack's code encodes the logarithm of the variance, and
has no decoder.
"""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.errors import ConfigurationError
from gibench.victims.base import Victim, seeded
from gibench.victims.lenet import lenet_features, redraw_uniform
from gibench.victims.normalization import CIFAR10_MEAN, CIFAR10_STD

_TAIL = -15.0
"""Below, log softplus(s) is s - exp(s) / 2 to double precision; softplus itself underflows further down."""


class VariationalBottleneck(nn.Module):
    r"""Encode features as a normal distribution, take one point of it, and decode.

    .. math:: (\mu, s) = W_e a + c_e, \quad b = \mu + \mathrm{softplus}(s)\, \epsilon, \quad W_d b + c_d

    The noise is a buffer, zero unless somebody substitutes it: the plain forward is a fixed function, b = mu. A client
    gives `functional_call` the buffer `<name>.noise` of shape (B, size), drawn from N(0, 1).

    forward: (N, features) -> (N, features).

    Args:
        features: d, of the layer before.
        size: K, of the code b.
    """

    noise: Tensor

    def __init__(self, features: int, *, size: int = 256) -> None:
        super().__init__()
        self.statistics = nn.Linear(features, 2 * size)
        self.decoder = nn.Linear(size, features)
        self.register_buffer("noise", torch.zeros(1, size), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Decode the code of (N, features)."""
        mean, spread = self.statistics(features).chunk(2, -1)
        decoded: Tensor = self.decoder(mean + F.softplus(spread) * self.noise)
        return decoded


def divergence(statistics: Tensor) -> Tensor:
    r"""Return how far the codes are from standard normal ones: the mean over the batch, in nats.

    .. math:: \mathrm{KL}(N(\mu, \sigma^2) \| N(0, 1)) = \sum_k (\mu_k^2 + \sigma_k^2 - 1) / 2 - \ln \sigma_k

    with sigma = softplus(s); finite, with its derivatives, however narrow the distribution is. PRECODE adds beta / ln 2
    times this to the client's loss, beta = 1e-3.

    Args:
        statistics: (B, 2K), mu and s: what the layer `statistics` of a bottleneck puts out.
    """
    mean, spread = statistics.chunk(2, -1)
    low = spread < _TAIL
    tail, body = spread.where(low, _TAIL), spread.where(~low, _TAIL)  # neither overflows, so no derivative is 0 * inf
    log_deviation = torch.where(low, tail - tail.exp() / 2, F.softplus(body).log())
    return ((mean.square() + F.softplus(spread).square() - 1) / 2 - log_deviation).sum(-1).mean()


def find_bottleneck(victim: nn.Module) -> tuple[str, VariationalBottleneck] | None:
    """Return the dotted name of the victim's bottleneck and the bottleneck, or None where there is none.

    Raises:
        ConfigurationError: there are several.
    """
    found = [(name, module) for name, module in victim.named_modules() if isinstance(module, VariationalBottleneck)]
    if len(found) > 1:
        names = ", ".join(name for name, _ in found)
        raise ConfigurationError(f"the victim has {len(found)} variational bottlenecks ({names}); leave one.")
    return found[0] if found else None


def precode_mlp(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    initialization: Literal["uniform", "default"] = "uniform",
    mean: Sequence[float] = CIFAR10_MEAN,
    std: Sequence[float] = CIFAR10_STD,
) -> Victim:
    """Linear layers to five times 500 and to 256, the bottleneck, linear layers to 500 and the classes; ReLU between.

    2,997,642 parameters for (3, 32, 32) and 10 classes. The first layer sees the image, before any noise.

    Args:
        seed: decides the weights, alone.
        num_classes: number of logits.
        image_shape: (C, H, W).
        initialization: "uniform" draws all weights and biases from U(-0.05, 0.05), as the attack's code does; "default"
            is PyTorch's own.
        mean: per channel.
        std: per channel.
    """
    channels, height, width = image_shape

    def build() -> nn.Module:
        layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        sizes = [channels * height * width, *[500] * 5, 256]
        for number, (before, after) in enumerate(pairwise(sizes), 1):
            layers |= {f"fc{number}": nn.Linear(before, after), f"act{number}": nn.ReLU()}
        network = nn.Sequential(
            OrderedDict(
                **layers,
                bottleneck=VariationalBottleneck(256),
                fc7=nn.Linear(256, 500),
                act7=nn.ReLU(),
                fc8=nn.Linear(500, num_classes),
            )
        )
        if initialization == "uniform":
            redraw_uniform(network, 0.05)
        return network

    return Victim(
        seeded(build, seed),
        architecture="precode_mlp",
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"{'U(-0.05, 0.05)' if initialization == 'uniform' else 'PyTorch default'}, seed {seed}",
    )


def precode_lenet(
    *,
    seed: int = 0,
    num_classes: int = 10,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    initialization: Literal["uniform", "default"] = "uniform",
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Victim:
    """Four convolutions of `lenet`, a linear layer to 256, the bottleneck, linear layers to 768 and the classes.

    611,054 parameters for (3, 32, 32) and 10 classes; sigmoids between.

    Args:
        seed: decides the weights, alone.
        num_classes: number of logits.
        image_shape: (C, H, W).
        initialization: "uniform" draws all weights and biases from U(-0.5, 0.5), as for `lenet`; "default" is
            PyTorch's own.
        mean: per channel; 0 by default, as for `lenet`.
        std: per channel; 1 by default.
    """

    def build() -> nn.Module:
        layers, hidden = lenet_features(image_shape, 4)
        network = nn.Sequential(
            OrderedDict(
                **layers,
                fc1=nn.Linear(hidden, 256),
                act5=nn.Sigmoid(),
                bottleneck=VariationalBottleneck(256),
                fc2=nn.Linear(256, hidden),
                act6=nn.Sigmoid(),
                fc3=nn.Linear(hidden, num_classes),
            )
        )
        if initialization == "uniform":
            redraw_uniform(network)
        return network

    return Victim(
        seeded(build, seed),
        architecture="precode_lenet",
        image_shape=image_shape,
        num_classes=num_classes,
        mean=mean,
        std=std,
        initialization=f"{'U(-0.5, 0.5)' if initialization == 'uniform' else 'PyTorch default'}, seed {seed}",
    )
