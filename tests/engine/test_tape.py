"""The tape on nets that break its assumptions: the right gradient, or a named error, never another gradient."""

import types
from collections.abc import Callable

import pytest
import torch
from references import updates as reference
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from gibench.engine.backends import RulesBackend, build
from gibench.engine.gradient import LocalGradient
from gibench.engine.rules import UnsupportedLayerError
from gibench.engine.verify import verify
from gibench.errors import BackendError
from gibench.likelihoods import Cosine
from gibench.victims import Victim, seeded

Forward = Callable[["Net", Tensor], Tensor]
Build = Callable[[], nn.Module]


class Net(nn.Module):
    """A net of two layers, or one and a head, put together by a function."""

    def __init__(self, run: Forward, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.run, self.first, self.second = run, first, second

    def forward(self, inputs: Tensor) -> Tensor:
        return self.run(self, inputs)


def chain(net: Net, inputs: Tensor) -> Tensor:
    return net.second(net.first(inputs).tanh().flatten(1))


def convolution() -> nn.Module:
    return nn.Conv2d(3, 3, 3, padding=1)


def net(run: Forward = chain, first: Build = convolution, second: Build = lambda: nn.Linear(108, 5)) -> Build:
    return lambda: Net(run, first(), second())


def victim(network: Build, *, frozen: bool = True) -> Victim:
    facts = {"architecture": "odd", "num_classes": 5, "initialization": "seeded"}
    built = Victim(seeded(network, 0), image_shape=(3, 6, 6), **facts)  # type: ignore[arg-type]
    return built.double().eval().requires_grad_(not frozen)


def double_in_place(net: Net, inputs: Tensor) -> Tensor:
    """Overwrites a layer's input after the layer has run; plain autograd refuses it."""
    hidden = inputs - 0.5
    return net.second((net.first(hidden).tanh() + hidden.mul_(2)).flatten(1))


def double(net: Net, inputs: Tensor) -> Tensor:
    hidden = inputs - 0.5
    return net.second((net.first(hidden).tanh() + 2 * hidden).flatten(1))


def add_in_place(net: Net, inputs: Tensor) -> Tensor:
    output = net.first(inputs)
    output += inputs
    output[:, 0] = 0
    return net.second(output.tanh().flatten(1))


def positive_in_place(net: Net, inputs: Tensor) -> Tensor:
    return net.second(F.relu_(net.first(inputs).flatten(1)))


def with_hook(change: Callable[[Tensor], Tensor]) -> Build:
    def layer() -> nn.Module:
        found = convolution()
        found.register_forward_pre_hook(lambda _module, inputs: (inputs[0] ** 2,))
        found.register_forward_hook(lambda _module, _inputs, output: change(output))
        return found

    return layer


RIGHT: dict[str, tuple[Build, Build]] = {
    name: (odd, plain or odd)
    for name, odd, plain in [
        ("ReLU in place", net(first=lambda: nn.Sequential(convolution(), nn.ReLU(inplace=True))), None),
        ("output overwritten", net(add_in_place), None),
        ("view of the output overwritten", net(positive_in_place), None),
        ("input overwritten", net(double_in_place), net(double)),
        ("hooks that alter", net(first=with_hook(lambda output: 2 * output.tanh())), None),
        ("hook that overwrites", net(first=with_hook(lambda output: output.mul_(3))), None),
    ]
}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", RIGHT)
def test_overwritten_tensors_and_hooks_leave_the_gradient_right(name: str, frozen: bool) -> None:
    odd, plain = (victim(network, frozen=frozen) for network in RIGHT[name])
    source = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 3, 6, 6, generator=source, dtype=torch.float64).requires_grad_()
    labels = torch.randint(5, (2, 3), generator=source)
    found, expected = RulesBackend(LocalGradient(odd)).update(images, labels), reference.updates(plain, images, labels)
    assert found.keys() == expected.keys()
    derivatives = []
    for update in (found, expected):
        total = torch.stack([update[key].square().sum() for key in sorted(update)]).sum()
        derivatives.append(torch.autograd.grad(total, images)[0])
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*derivatives, rtol=1e-9, atol=1e-12)


class Doubled(nn.Linear):
    """Computes something else than the layer that it inherits from."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        return 2 * super().forward(input)


def tied() -> nn.Module:
    found = Net(lambda net, inputs: net.second(net.first(inputs)).flatten(1), convolution(), convolution())
    found.second.weight = found.first.weight
    return found


def of_itself() -> nn.Module:
    """A plain layer with a forward of its own."""
    layer = convolution()
    layer.forward = types.MethodType(lambda self, inputs: 2 * nn.Conv2d.forward(self, inputs), layer)
    return layer


def with_more() -> nn.Module:
    layer = convolution()
    layer.scale = nn.Parameter(torch.ones(1))
    return layer


REFUSED: dict[str, tuple[Build, str]] = {
    "transposed convolution": (net(first=lambda: nn.ConvTranspose2d(3, 3, 3, padding=1)), "first is ConvTranspose2d"),
    "embedding": (
        net(lambda net, x: net.second(net.first((3 * x).long()).flatten(1)), lambda: nn.Embedding(4, 1)),
        "first is Embedding",
    ),
    "PReLU": (net(first=nn.PReLU), "first is PReLU"),
    "instance norm": (net(first=lambda: nn.InstanceNorm2d(3, affine=True)), "first is InstanceNorm2d"),
    "subclass": (net(second=lambda: Doubled(108, 5)), "second is Doubled"),
    "parametrization": (net(first=lambda: parametrizations.weight_norm(convolution())), "is ParametrizedConv2d"),
    "parametrization, no bias": (
        net(first=lambda: parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1, bias=False))),
        "is ParametrizationList",
    ),
    "tied weights": (tied, "first.weight and network.second.weight are the same weights"),
    "twice": (net(lambda net, x: net.second(net.first(net.first(x)).flatten(1))), "first runs more than once"),
    "never": (net(lambda net, x: net.second(x.flatten(1))), "first did not run"),
    "past the layer": (
        net(lambda net, x: net.second(F.conv2d(x, net.first.weight, padding=1).flatten(1))),
        "first did not run",
    ),
}
MORE_REFUSED: dict[str, Build] = {
    "old weight norm": net(first=lambda: weight_norm(convolution())),
    "one more parameter": net(lambda net, x: net.second((net.first.scale * net.first(x)).flatten(1)), with_more),
    "forward of its own": net(first=of_itself),
}


@pytest.mark.parametrize("backend", ["rules", "gram"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name: str, backend: str) -> None:
    network, words = REFUSED[name]
    with pytest.raises(UnsupportedLayerError, match=f"^network.*{words}"):
        build(backend, LocalGradient(victim(network)), Cosine())


@pytest.mark.parametrize("name", MORE_REFUSED)
def test_layers_that_are_more_than_their_class_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedLayerError, match=r"^network\.first"):
        build("rules", LocalGradient(victim(MORE_REFUSED[name])), Cosine())


def test_moving_statistics_are_refused() -> None:
    moving = victim(net(first=lambda: nn.BatchNorm2d(3))).train()
    with pytest.raises(UnsupportedLayerError, match=r"network\.first: BatchNorm moves"):
        build("rules", LocalGradient(moving), Cosine())


def beside(net: Net, inputs: Tensor) -> Tensor:
    """Uses a layer's weights once more, past the layer."""
    return net.second(F.conv2d(net.first(inputs).tanh(), net.first.weight, padding=1).flatten(1))


def doubled_batch(net: Net, inputs: Tensor) -> Tensor:
    both = net.first(torch.cat([inputs, inputs.flip(-1)])).tanh()
    return net.second((both[: len(inputs)] * both[len(inputs) :]).flatten(1))


def positions_first(net: Net, inputs: Tensor) -> Tensor:
    rows = inputs.flatten(2).permute(2, 0, 1)
    return net.second(net.first(rows).tanh().permute(1, 2, 0).flatten(1))


def constant_input(net: Net, inputs: Tensor) -> Tensor:
    offsets = net.first(torch.linspace(0, 1, 12, dtype=inputs.dtype).reshape(4, 3)).mean(0)
    return net.second((inputs + offsets[:, None, None]).tanh().flatten(1))


def axes_exchanged(net: Net, inputs: Tensor) -> Tensor:
    return net.second(net.first(inputs.transpose(0, 1)).transpose(0, 1).flatten(1))


def batch_normalized(net: Net, inputs: Tensor) -> Tensor:
    return net.second(F.batch_norm(net.first(inputs), None, None, training=True).flatten(1))


FOUND: dict[str, Build] = {
    "weights used beside": net(beside),
    "mean of the batch": net(lambda net, x: net.second((net.first(x) - x.mean(0)).tanh().flatten(1))),
    "length of the batch": net(lambda net, x: net.second((net.first(x) / x.norm()).tanh().flatten(1))),
    "batch statistics": net(batch_normalized),
    "batch doubled": net(doubled_batch),
    "positions first": net(positions_first, first=lambda: nn.Linear(3, 3)),
    "axes exchanged": net(axes_exchanged, first=lambda: nn.Linear(6, 6)),
}


@pytest.mark.parametrize("backend", ["rules", "gram"])
@pytest.mark.parametrize("name", FOUND)
def test_what_mixes_samples_is_found_before_it_is_trusted(name: str, backend: str) -> None:
    """A net that no layer gives away: the tape runs and is wrong, which a comparison with the generic way shows."""
    with pytest.raises(BackendError, match="than the generic one"):
        verify(backend, LocalGradient(victim(FOUND[name])), Cosine(), 2)


@pytest.mark.parametrize(
    "network",
    [
        net(constant_input, first=lambda: nn.Linear(3, 3)),
        net(lambda net, x: net.second(input=net.first(x).flatten(1))),
    ],
    ids=["constant input", "input by keyword"],
)
def test_rare_layers_are_served_or_refused_by_name(network: Build) -> None:
    try:
        verify("rules", LocalGradient(victim(network)), Cosine(), 2)
    except BackendError:
        return


def test_the_same_layers_pass_the_comparison() -> None:
    """The comparison above finds nothing where there is nothing."""
    for backend in ("rules", "gram"):
        verify(backend, LocalGradient(victim(net(double))), Cosine(), 2)
