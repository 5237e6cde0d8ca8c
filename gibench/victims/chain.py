"""A victim as a chain of layers without bias, and the equations of each layer, which R-GAP solves.

A layer z = W x has the gradient dW = k x^T, k = dl/dz (for a convolution, summed over its places). Whoever knows z and
k has two sets of equations that are linear in x, W x = z and K x = vec(dW). Everything here is float64 on the CPU,
whose LAPACK has what rank decisions take.
"""

from typing import Any, NamedTuple

import torch
from scipy.linalg import lapack
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.errors import RefusalError
from gibench.precision import exact
from gibench.seeding import uniform_rows
from gibench.victims.base import Victim
from gibench.victims.cnn6 import BinaryLogits

SAFE = 1e-12
"""Least reciprocal condition number of a normal matrix that is trusted: a condition of a million of the equations."""

LARGEST = 16384
"""Most unknowns or equations of one layer: a dense matrix of 2 GiB."""

_SERVED = "layer-by-layer inversion serves chains of Conv2d and Linear without bias with LeakyReLU between them"


class Layer(NamedTuple):
    """A bias-free layer as a convolution; a linear layer has a 1x1 kernel and its features as channels of one place.

    name: of its module in the victim. weight: (O, C, kh, kw), float64. shape: (C, H, W) of its input. geometry: stride,
    padding and dilation of a convolution; empty for a linear layer. slope: a(z) = z for z > 0 and slope * z else, of
    the activation after it; 1 is none.
    """

    name: str
    weight: Tensor
    shape: tuple[int, int, int]
    geometry: dict[str, Any]
    slope: float

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return z (N, O, H', W') of inputs that hold N * C * H * W entries."""
        return F.conv2d(inputs.reshape(-1, *self.shape), self.weight, **self.geometry)

    @property
    def linear(self) -> bool:
        """Whether it is fully connected. A convolution of one place is not: its kernel may reach into the padding."""
        return not self.geometry


class Chain(NamedTuple):
    """A victim as its layers. bias: (K,) of the last one, or None where that gives one logit, for `BinaryLogits`."""

    layers: tuple[Layer, ...]
    bias: Tensor | None
    num_classes: int

    def logits(self, preactivation: Tensor) -> Tensor:
        """Turn z (N, K or 1, 1, 1) of the last layer into logits (N, K)."""
        z = preactivation.flatten(1)
        return BinaryLogits(self.num_classes)(z) if self.bias is None else z + self.bias

    def __call__(self, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits of normalized images (N, C, H, W), and z of each layer."""
        found: list[Tensor] = []
        for layer in self.layers:
            found.append(layer(inputs))
            inputs = F.leaky_relu(found[-1], layer.slope)
        return self.logits(found[-1]), found


def factor(normal: Tensor) -> Tensor | None:
    """Return the Cholesky factor (n, n) of a normal matrix A^T A, or None unless A has safely full column rank."""
    lower, failed = torch.linalg.cholesky_ex(normal)
    if failed:
        return None
    reciprocal, _ = lapack.dpocon(lower.numpy(), float(normal.abs().sum(0).max()), uplo="L")
    return lower if reciprocal > SAFE else None


def weight_matrix(layer: Layer) -> Tensor:
    """W with W x = z, (O * places, C * H * W), for x and z flattened."""
    return torch.einsum("ocu,pux->opcx", layer.weight.flatten(2), _footprint(layer)).flatten(2).flatten(0, 1)


def gradient_matrix(layer: Layer, k: Tensor) -> Tensor:
    """K with K x_c = dW[:, c] for each channel c, (O * kh * kw, H * W), where k (O, H', W') is dl/dz.

    The equations of all channels are I (x) K: each channel's part of the gradient sees that channel alone.
    """
    return torch.einsum("op,pux->oux", k.flatten(1), _footprint(layer)).flatten(0, 1)


def _footprint(layer: Layer) -> Tensor:
    """(places, kh * kw, H * W): 1 where an entry of the kernel meets an entry of the input at a place of the output."""
    _, height, width = layer.shape
    kernel = layer.weight.shape[2:]
    pixels = torch.eye(height * width, dtype=torch.float64).reshape(-1, 1, height, width)
    entries = torch.eye(kernel.numel(), dtype=torch.float64).reshape(-1, 1, *kernel)
    return F.conv2d(pixels, entries, **layer.geometry).flatten(2).permute(2, 1, 0)


def read_chain(victim: Victim) -> Chain:
    """Read the layers off the victim's modules, and check the chain against the victim's own output on an image.

    Served are Conv2d (one group, zero padding) and Linear without bias, LeakyReLU with a positive slope, Flatten and
    Identity, in the order in which they are registered; at the end a Linear with bias, or one without bias that gives
    the one logit of a `BinaryLogits`.

    Raises:
        RefusalError: naming the module that is not served.
    """
    modules = [(name, module) for name, module in victim.named_modules() if not list(module.children())]
    binary = bool(modules) and isinstance(modules[-1][1], BinaryLogits)
    modules = modules[:-1] if binary else modules
    last = modules[-1][1] if modules else None
    if not isinstance(last, nn.Linear) or (last.bias is None) != binary:
        raise RefusalError(f"{_SERVED}, and a Linear with bias, or BinaryLogits, at the end; here it is {last}.")
    layers: list[Layer] = []
    shape = victim.image_shape
    for name, module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear):
            layers.append(_read_layer(name, module, shape, head=module is last))
            shape = _shape_after(layers[-1])
        elif isinstance(module, nn.LeakyReLU) and layers and module.negative_slope > 0:
            layers[-1] = layers[-1]._replace(slope=layers[-1].slope * module.negative_slope)
        elif not isinstance(module, nn.Flatten | nn.Identity):
            raise RefusalError(f"{_SERVED}; {name} is {module}.")
    bias = None if last.bias is None else last.bias.detach().to("cpu", torch.float64)
    chain = Chain(tuple(layers), bias, victim.num_classes)
    _check(victim, chain)
    return chain


def _read_layer(name: str, module: nn.Conv2d | nn.Linear, shape: tuple[int, int, int], *, head: bool) -> Layer:
    channels, height, width = shape
    if module.bias is not None and not head:
        raise RefusalError(f"{_SERVED}; {name} is {module}.")
    weight = module.weight.detach().to("cpu", torch.float64)
    if isinstance(module, nn.Linear):
        if module.in_features != channels * height * width:
            raise RefusalError(f"{_SERVED}; {name} does not take the {channels * height * width} entries before it.")
        return Layer(name, weight[..., None, None], (module.in_features, 1, 1), {}, 1.0)
    if module.groups != 1 or module.padding_mode != "zeros" or module.in_channels != channels:
        raise RefusalError(f"{_SERVED}, of one group and with zero padding; {name} is {module}.")
    geometry = {key: getattr(module, key) for key in ("stride", "padding", "dilation")}
    layer = Layer(name, weight, shape, geometry, 1.0)
    largest = max(torch.Size(shape).numel(), torch.Size(_shape_after(layer)).numel())
    if largest > LARGEST:
        raise RefusalError(
            f"{name} makes dense equations of side {largest}; choose smaller images: it may be {LARGEST}."
        )
    return layer


def _shape_after(layer: Layer) -> tuple[int, int, int]:
    """(O, H', W')."""
    channels, height, width = layer(torch.zeros(layer.shape, dtype=torch.float64)).shape[1:]
    return channels, height, width


def _check(victim: Victim, chain: Chain) -> None:
    """Raise RefusalError unless the chain and the victim agree on an image."""
    image = uniform_rows((1, *victim.image_shape), (0,), "chain")[0].to(victim.mean)
    with torch.no_grad(), exact(image.device.type):
        expected = victim(image).double().cpu()
        found, _ = chain(victim.normalize(image).double().cpu())
    if found.shape != expected.shape or (found - expected).norm() > 1e-4 * expected.norm():
        raise RefusalError(f"{_SERVED}; the victim computes something else than its modules in order.")
