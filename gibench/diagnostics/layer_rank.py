"""Do the equations of each layer determine its input? The rank analysis of R-GAP (Zhu and Blaschko, ICLR 2021).

A chain of layers z_i = W_i x_i, x_(i+1) = a(z_i) sends the gradient dW_i = k_i x_i^T, k_i = dl/dz_i (for a convolution,
summed over its places). Whoever knows z_i and k_i has two sets of equations that are linear in x_i, W_i x_i = z_i and
K_i x_i = vec(dW_i); see `gibench.victims.chain`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gibench.errors import ShapeError
from gibench.victims import Victim
from gibench.victims.chain import Layer, factor, gradient_matrix, read_chain, weight_matrix


class LayerRank(NamedTuple):
    """What one layer's equations say of its input, for one image.

    name: of the layer. unknowns: |x_i|. weight_equations, gradient_equations: rows of W_i and K_i. rank: of both
    together. deficiency: rho_i = unknowns - rank; the input is unique, given the layers behind it, where it is 0.
    """

    name: str
    unknowns: int
    weight_equations: int
    gradient_equations: int
    rank: int

    @property
    def deficiency(self) -> int:
        """Directions of the input that the equations do not see."""
        return self.unknowns - self.rank


def rank_deficiency(victim: Victim, images: Tensor, labels: Tensor) -> list[LayerRank]:
    r"""Count, layer by layer, what the update of one image leaves open about the layer's input.

    .. math:: \rho_i = |x_i| - \operatorname{rank} [W_i; K_i]

    at the victim's weights and the image's own :math:`k_i`. The input of the last layer follows from its gradient
    alone, because its output is not known at first. The paper sums up all layers in one index; we report each, and
    `max(found.deficiency for found in ...)` says whether R-GAP's answer is unique.

    Args:
        victim: a chain; see `read_chain`.
        images: (1, C, H, W) in [0, 1].
        labels: (1,), int64.

    Raises:
        RefusalError: when the victim is no such chain, or a layer is too large for dense matrices.
        ShapeError: for more than one image.
    """
    if tuple(images.shape) != (1, *victim.image_shape) or tuple(labels.shape) != (1,):
        wanted = (1, *victim.image_shape)
        raise ShapeError(f"pass one image of shape {wanted} and one label, not {tuple(images.shape)}.")
    chain = read_chain(victim)
    with torch.enable_grad():
        inputs = victim.normalize(images).detach().to("cpu", torch.float64).requires_grad_()
        logits, preactivations = chain(inputs)
        slopes = torch.autograd.grad(F.cross_entropy(logits, labels.cpu()), preactivations)
    pairs = zip(chain.layers, slopes, strict=True)
    return [_layer_rank(layer, k[0], start=layer is chain.layers[-1]) for layer, k in pairs]


def _layer_rank(layer: Layer, k: Tensor, *, start: bool) -> LayerRank:
    channels, height, width = layer.shape
    gradient = gradient_matrix(layer, k)
    weight = None if start else weight_matrix(layer)
    rank = _rank(gradient, weight, channels)
    rows = 0 if weight is None else len(weight)
    return LayerRank(layer.name, channels * height * width, rows, channels * len(gradient), rank)


def _rank(gradient: Tensor, weight: Tensor | None, channels: int) -> int:
    """Rank of [W; I (x) K]: that of K on each channel, and that of W where K is blind."""
    _, triangle = torch.linalg.qr(gradient, mode="r")
    _, values, directions = torch.linalg.svd(triangle)
    seen = int((values > values[0] * max(gradient.shape) * torch.finfo(values.dtype).eps).sum())
    blind = directions[seen:]
    if weight is None or not len(blind):
        return channels * seen
    left = (weight.unflatten(1, (channels, -1)) @ blind.T).flatten(1)
    full = factor(left.T @ left) is not None  # cheaper than singular values, and certain
    return channels * seen + (left.shape[1] if full else int(torch.linalg.matrix_rank(left)))
