"""Smooth counterparts of PyTorch's functions with a kink, by function: what `softened` puts in their place.

Each takes the sharpness and then what PyTorch's function takes, and returns None where it has no answer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gibench.victims.activations import LINEAR_ABOVE

Pair = int | tuple[int, ...] | list[int]
Soft = Callable[..., Tensor | None]


def soft_relu(sharpness: float, x: Tensor, inplace: bool = False) -> Tensor:
    """s(x) = log(1 + exp(beta x)) / beta."""
    return _give(x, lambda x: F.softplus(x, beta=sharpness, threshold=LINEAR_ABOVE), inplace=inplace)


def soft_leaky_relu(
    sharpness: float,
    x: Tensor,
    negative_slope: float = 0.01,
    inplace: bool = False,
) -> Tensor:
    """Return a x + (1 - a) s(x) with the slope a."""
    return _give(x, lambda x: negative_slope * x + (1 - negative_slope) * soft_relu(sharpness, x), inplace=inplace)


def soft_prelu(sharpness: float, x: Tensor, weight: Tensor) -> Tensor:
    """The same, with one slope for all or one for each channel."""
    slope = weight if weight.numel() == 1 or x.ndim < 2 else weight.reshape(-1, *[1] * (x.ndim - 2))
    return slope * x + (1 - slope) * soft_relu(sharpness, x)


def soft_hardtanh(
    sharpness: float,
    x: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Tensor:
    """Return a + s(x - a) - s(x - b) for the interval from a to b."""
    return _give(x, lambda x: _between(sharpness, x, min_val, max_val), inplace=inplace)


def soft_relu6(sharpness: float, x: Tensor, inplace: bool = False) -> Tensor:
    """The same from 0 to 6."""
    return soft_hardtanh(sharpness, x, 0.0, 6.0, inplace)


def soft_clamp(
    sharpness: float,
    x: Tensor,
    min: float | Tensor | None = None,  # noqa: A002 - the names in torch
    max: float | Tensor | None = None,  # noqa: A002
) -> Tensor | None:
    """The same between two numbers, or above or below one; bounds that are tensors have no counterpart."""
    if isinstance(min, Tensor) or isinstance(max, Tensor) or not x.is_floating_point():
        return None
    return _between(sharpness, x, min, max)


def soft_max_pool2d(
    sharpness: float,
    x: Tensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | None:
    """log(sum exp(beta x)) / beta over each window, (..., H, W) -> (..., H', W'); padding does not count."""
    if return_indices:
        return None
    pads, counts = [], []
    kernels, steps, edges, gaps = (_two(value) for value in (kernel_size, stride or kernel_size, padding, dilation))
    for side, kernel, step, edge, gap in zip(x.shape[-2:], kernels, steps, edges, gaps, strict=True):
        reach = gap * (kernel - 1) + 1
        room = side + 2 * edge - reach
        count = (-(-room // step) if ceil_mode else room // step) + 1
        if (count - 1) * step >= side + edge:  # a window must not start in the padding behind the image
            count -= 1
        counts.append(count)
        pads.append((edge, (count - 1) * step + reach - side - edge))
    padded = F.pad(x, (*pads[1], *pads[0]), value=-torch.inf)
    rows, columns = (
        [slice(gap * place, gap * place + (count - 1) * step + 1, step) for place in range(kernel)]
        for count, kernel, step, gap in zip(counts, kernels, steps, gaps, strict=True)
    )
    # Slices rather than `unfold`, whose derivative vmap computes update by update.
    windows = torch.stack([padded[..., row, column] for row in rows for column in columns])
    return (sharpness * windows).logsumexp(0) / sharpness


def _between(sharpness: float, x: Tensor, low: float | None, high: float | None) -> Tensor:
    if low is None:
        return x if high is None else high - soft_relu(sharpness, high - x)
    above = low + soft_relu(sharpness, x - low)
    return above if high is None else above - soft_relu(sharpness, x - high)


def _give(x: Tensor, function: Callable[[Tensor], Tensor], *, inplace: bool) -> Tensor:
    """Return function(x), written into x where the victim asks for that."""
    return x.copy_(function(x.clone())) if inplace else function(x)


def _two(value: Pair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[-1])


def _overwriting(soft: Soft) -> Soft:
    def overwrite(sharpness: float, x: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:  # noqa: ANN401
        found = soft(sharpness, x.clone(), *args, **kwargs)
        return x.copy_(found) if isinstance(found, Tensor) else None

    return overwrite


SOFT: dict[Callable[..., Any], Soft] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), soft_relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_), _overwriting(soft_relu)),
    **dict.fromkeys((F.leaky_relu, torch._C._nn.leaky_relu), soft_leaky_relu),
    **dict.fromkeys((F.hardtanh, torch._C._nn.hardtanh), soft_hardtanh),
    **dict.fromkeys((F.prelu, torch.prelu, Tensor.prelu), soft_prelu),
    **dict.fromkeys((torch.clamp, Tensor.clamp, torch.clip, Tensor.clip), soft_clamp),
    **dict.fromkeys((torch.clamp_, Tensor.clamp_), _overwriting(soft_clamp)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), soft_max_pool2d),
    F.relu6: soft_relu6,
    F.leaky_relu_: _overwriting(soft_leaky_relu),
    F.hardtanh_: _overwriting(soft_hardtanh),
}
"""Function of PyTorch -> its smooth counterpart."""
