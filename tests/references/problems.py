"""Random small nets of all the layers that have rules, with images, labels and observed updates."""

import math
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from gibench.clients.batch_norm import use_batch_statistics
from gibench.types import Update
from gibench.victims import Victim

SMOOTH = (nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU)
CLASSES = 4


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.body(inputs)


class Tokens(nn.Module):
    """(N, C, H, W) -> (N, H * W, C)."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(2).mT


class Problem(NamedTuple):
    """A net that normalizes by PyTorch's own layers, and how many of what it is given."""

    plain: Victim
    scale: float
    clients: int
    restarts: int
    size: int
    soft: bool
    gram: bool
    """Whether Gram matrices count as the cheaper way, which they would hardly ever be in nets so small."""

    def victim(self) -> Victim:
        """What the engine gets."""
        victim = deepcopy(self.plain)
        if not any(getattr(layer, "running_mean", None) is not None for layer in victim.modules()):
            use_batch_statistics(victim)
        return victim

    def tensors(self) -> tuple[Tensor, Tensor, Update]:
        """Images, labels, and observed updates of about the length of a gradient."""
        source = torch.Generator().manual_seed(self.size)
        shape, exact = (self.clients * self.restarts, self.size), torch.float64
        images = torch.rand(*shape, *self.plain.image_shape, generator=source, dtype=exact).requires_grad_()
        labels = torch.randint(CLASSES, shape, generator=source)
        if self.soft:
            labels = torch.randn(*shape, CLASSES, generator=source, dtype=exact).softmax(-1).requires_grad_()
        observed = {
            name: torch.randn(self.clients, *parameter.shape, generator=source, dtype=exact) / parameter.numel() ** 0.5
            for name, parameter in self.plain.named_parameters()
        }
        return images, labels, observed


Draw = Any
"""Hypothesis' draw."""


def convolution(draw: Draw, shape: tuple[int, ...], *, keep: bool) -> nn.Module:
    """With the shape kept where `keep`."""
    channels, *space = shape
    axes = len(space)
    groups = draw(st.sampled_from([count for count in range(1, channels + 1) if channels % count == 0]))
    same = keep or draw(st.booleans())
    dilation = [draw(st.integers(1, 2)) for _ in space]
    padding = [draw(st.integers(0, 2)) for _ in space]
    kernel = [draw(st.integers(1, 3)) for _ in space]
    for axis, size in enumerate(space):
        if not same and dilation[axis] * (kernel[axis] - 1) >= size + 2 * padding[axis]:
            kernel[axis] = 1
    modes = ["zeros", "circular", "reflect", "replicate"] if min(space) > 2 else ["zeros"]
    layer: nn.Module = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](
        channels,
        channels if keep else groups * draw(st.integers(1, 3)),
        tuple(kernel),
        stride=1 if same else tuple(draw(st.integers(1, 2)) for _ in space),
        padding="same" if same else tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(modes)),
    )
    return layer


def normalization(draw: Draw, shape: tuple[int, ...], *, running: bool) -> nn.Module:
    choices = ["none", "batch", "layer"] + ["group"] * (math.prod(shape[1:]) > 1)
    choice = draw(st.sampled_from(choices))
    affine, eps = draw(st.booleans()), draw(st.sampled_from([1e-5, 1e-2]))
    if choice == "batch" and len(shape) < 4:
        kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
        return kind(shape[0], eps=eps, affine=affine, track_running_stats=running)
    if choice == "group":
        groups = draw(st.sampled_from([count for count in range(1, shape[0] + 1) if shape[0] % count == 0]))
        return nn.GroupNorm(groups, shape[0], eps=eps, affine=affine)
    if choice == "layer" and shape[-1] > 1:
        return nn.LayerNorm(shape if draw(st.booleans()) else shape[-1:], eps=eps, elementwise_affine=affine)
    return nn.Identity()


def pooling(draw: Draw, shape: tuple[int, ...]) -> nn.Module:
    """After a smooth activation, so that no two inputs tie."""
    axes = len(shape) - 1
    kind = draw(st.sampled_from(["none", "Avg", "Max", "AdaptiveAvg", "AdaptiveMax"]))
    if kind == "none" or axes == 0 or min(shape[1:]) < 2:
        return nn.Identity()
    layer: nn.Module = getattr(nn, f"{kind}Pool{axes}d")(draw(st.integers(1, 2)))
    return layer


def block(draw: Draw, layout: str, shape: tuple[int, ...], *, running: bool) -> list[nn.Module]:
    keep = draw(st.booleans())
    if layout in ("tokens", "flat"):
        width = shape[-1] if keep else draw(st.integers(1, 7))
        layer: nn.Module = nn.Linear(shape[-1], width, bias=draw(st.booleans()))
    else:
        layer = convolution(draw, shape, keep=keep)
    inner_shape = after([layer], shape)
    activation = draw(st.sampled_from([*SMOOTH, nn.ReLU]))()
    body = [layer, normalization(draw, inner_shape, running=running), activation]
    if keep:
        body = [Residual(nn.Sequential(*body))]
    if layout != "tokens" and not isinstance(activation, nn.ReLU):
        body.append(pooling(draw, inner_shape))
    return body


def after(layers: list[nn.Module], shape: tuple[int, ...]) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(nn.Sequential(*layers).eval()(torch.rand(2, *shape)).shape[1:])


@st.composite
def problems(draw: Draw) -> Problem:
    torch.manual_seed(draw(st.integers(0, 1000)))
    shape = (draw(st.sampled_from([1, 2, 4])), 5, 6)
    layout = draw(st.sampled_from(["2d", "1d", "3d", "tokens", "flat"]))
    running = draw(st.booleans())
    first = {"1d": nn.Flatten(2), "2d": nn.Identity(), "3d": nn.Unflatten(1, (1, -1)), "tokens": Tokens()}
    layers = [first.get(layout, nn.Flatten())]
    for _ in range(draw(st.integers(1, 2))):
        layers += block(draw, layout, after(layers, shape), running=running)
    layers.append(nn.Flatten())
    layers.append(nn.Linear(*after(layers, shape), CLASSES))
    return Problem(
        perturbed(layers, shape),
        scale=draw(st.sampled_from([1.0, 0.1, 3.0])),
        clients=draw(st.integers(1, 3)),
        restarts=draw(st.integers(1, 2)),
        size=draw(st.integers(1 if running else 2, 3)),
        soft=draw(st.booleans()),
        gram=draw(st.booleans()),
    )


def perturbed(layers: list[nn.Module], shape: tuple[int, int, int]) -> Victim:
    """A victim in float64, with no weight or statistic at its trivial value."""
    facts = {"architecture": "random", "num_classes": CLASSES, "initialization": "random"}
    plain = Victim(nn.Sequential(*layers), image_shape=shape, mean=(0.4,), std=(0.3,), **facts).double().eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for tensor in plain.state_dict().values():
            if tensor.is_floating_point():  # running variances stay positive
                tensor.add_(0.3 * torch.rand_like(tensor))
    return plain


def grouped() -> Problem:
    """What is drawn too rarely: Gram matrices of a convolution in groups, whose axes differ in every setting."""
    layer = nn.Conv2d(4, 6, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2)
    layers = [layer, nn.Tanh(), nn.Flatten()]
    victim = perturbed([*layers, nn.Linear(*after(layers, (4, 5, 6)), CLASSES)], (4, 5, 6))
    return Problem(victim, scale=1.0, clients=2, restarts=2, size=2, soft=False, gram=True)
