"""The equations of a layer against autograd, and the ranks of R-GAP's nets."""

import pytest
import torch
from helpers import leaky_chain
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.diagnostics import rank_deficiency
from gibench.errors import RefusalError, ShapeError
from gibench.victims import BinaryLogits, Victim, cnn6, fcn3, lenet
from gibench.victims.chain import factor, gradient_matrix, read_chain, weight_matrix


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


GEOMETRIES = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 4, "stride": 2, "padding": 2},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
    {"kernel_size": 3, "padding": "same"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_matrices_are_jacobians(geometry: dict[str, int]) -> None:
    """W of z in x, and K, channel by channel, of the weight gradient in x."""
    convolution = nn.Conv2d(2, 3, bias=False, **geometry)
    places = convolution(torch.zeros(1, 2, 5, 6)).numel()
    network = nn.Sequential(convolution, nn.Flatten(), nn.Linear(places, 4))
    victim = Victim(
        network, architecture="one", image_shape=(2, 5, 6), num_classes=4, initialization="default"
    ).double()
    layer = read_chain(victim).layers[0]
    k = random(3, places // 3)

    def gradient(x: Tensor) -> Tensor:
        def product(weight: Tensor) -> Tensor:
            outputs = torch.func.functional_call(convolution, {"weight": weight}, (x.reshape(1, 2, 5, 6),))
            return (outputs.flatten() * k.flatten()).sum()

        return torch.func.grad(product)(layer.weight)

    x = random(60)
    expected = torch.func.jacrev(lambda x: convolution(x.reshape(1, 2, 5, 6)).flatten())(x)
    torch.testing.assert_close(weight_matrix(layer), expected.detach())
    each = torch.func.jacrev(gradient)(x).unflatten(4, (2, 30))  # (O, C, kh, kw, C, H * W)
    for channel in range(2):
        own = each[:, channel, :, :, channel].flatten(0, 2)
        torch.testing.assert_close(gradient_matrix(layer, k), own)
        assert not each[:, channel, :, :, 1 - channel].any()


def dense_rank(victim: Victim, image: Tensor, label: Tensor) -> list[int]:
    """Rank of [W; K] of each layer but the last, from Jacobians of the whole, without a chain."""
    x = victim.normalize(image.double())
    layers = [layer for layer in victim.network if isinstance(layer, nn.Conv2d)]
    inputs, k = [], []
    for layer in victim.network:
        if isinstance(layer, nn.Conv2d):
            inputs.append(x.detach())
            x = layer(x)
            x.retain_grad()
            k.append(x)
        else:
            x = layer(x)
    F.cross_entropy(x, label).backward()
    ranks = []
    for layer, given, z in zip(layers, inputs, k, strict=True):

        def gradient(x: Tensor, layer: nn.Conv2d = layer, z: Tensor = z) -> Tensor:
            def product(weight: Tensor) -> Tensor:
                return (torch.func.functional_call(layer, {"weight": weight}, (x,)) * z.grad).sum()

            return torch.func.grad(product)(layer.weight.detach()).flatten()

        parts = [torch.func.jacrev(f)(given).flatten(1) for f in (lambda x, layer=layer: layer(x).flatten(), gradient)]
        ranks.append(int(torch.linalg.matrix_rank(torch.cat([part / part.norm() for part in parts]).detach())))
    return ranks


@pytest.mark.parametrize("channels", [1, 2, 4, 8, 12])
def test_ranks_are_those_of_the_dense_jacobians(channels: int) -> None:
    victim = leaky_chain(channels=channels).double().eval()
    image, label = random(1, 3, 8, 8).sigmoid(), torch.tensor([3])
    found = rank_deficiency(victim, image, label)
    assert [each.rank for each in found[:-1]] == dense_rank(victim, image, label)
    assert [each.name for each in found] == ["network.0", "network.2", "network.5"]
    assert [each.unknowns for each in found] == [192, 16 * channels, 192]
    assert found[0].weight_equations == 16 * channels
    assert found[0].gradient_equations == 27 * channels
    assert found[-1] == ("network.5", 192, 0, 1920, 192)
    assert found[0].deficiency == 192 - found[0].rank
    assert (found[0].deficiency > 0) == (channels < 8)


def test_a_tight_layer_is_neither_over_nor_undercounted() -> None:
    """W and K of one image are dependent: W_a . dW_b is k_b . z_a, O^2 equations that say nothing new."""
    victim = leaky_chain(channels=2).double()
    first = rank_deficiency(victim, random(1, 3, 8, 8).sigmoid(), torch.tensor([0]))[0]
    assert first.rank <= first.weight_equations + first.gradient_equations - 2**2


@pytest.mark.slow
def test_cnn6_is_determined_and_cnn6_d_is_not() -> None:
    image, label = random(1, 3, 32, 32).sigmoid(), torch.tensor([3])
    for head in ("multiclass", "binary"):
        assert {each.deficiency for each in rank_deficiency(cnn6(head=head), image, label)} == {0}  # type: ignore[arg-type]
    found = {each.name: each.deficiency for each in rank_deficiency(cnn6(deficient=True), image, label)}
    assert [name for name, deficiency in found.items() if deficiency] == ["network.conv2"]
    assert found["network.conv2"] >= 3468 - (
        1620 + 2160 - 20**2
    )  # unknowns, equations less those that follow of others


def test_fcn3_is_determined_by_its_gradient() -> None:
    found = rank_deficiency(fcn3(), random(1, 1, 28, 28).sigmoid(), torch.tensor([7]))
    assert [(each.unknowns, each.rank) for each in found] == [(784, 784), (1000, 1000), (100, 100)]


def test_an_image_of_certain_label_sends_no_equations() -> None:
    """A loss without slope: dW says nothing, and W alone counts."""
    victim = leaky_chain(channels=4).double()
    with torch.no_grad():
        victim.network[-1].bias[3] = 1e6
    found = rank_deficiency(victim, random(1, 3, 8, 8).sigmoid(), torch.tensor([3]))
    assert [each.rank for each in found] == [64, 64, 0]


def test_the_factor_is_refused_where_directions_are_missing() -> None:
    tall, wide = random(30, 20), random(10, 20)
    lower = factor(tall.T @ tall)
    assert lower is not None
    torch.testing.assert_close(lower @ lower.T, tall.T @ tall)
    assert factor(wide.T @ wide) is None


def test_what_cannot_be_served_is_said() -> None:
    image, label = torch.rand(1, 3, 32, 32), torch.tensor([1])
    with pytest.raises(RefusalError, match=r"network.conv1 is Conv2d"):
        rank_deficiency(lenet(), image, label)
    with pytest.raises(ShapeError, match="pass one image"):
        rank_deficiency(cnn6(), image.expand(2, -1, -1, -1), label.expand(2))
    with pytest.raises(RefusalError, match=r"conv1 makes dense equations of side 50700"):
        rank_deficiency(cnn6(image_shape=(3, 128, 128)), torch.rand(1, 3, 128, 128), label)


@pytest.mark.parametrize("classes", [2, 10])
def test_binary_logits_are_the_logistic_loss(classes: int) -> None:
    """Softmax cross-entropy on [0, z] is log(1 + e^(-z)) for the second half, log(1 + e^z) for the first."""
    z = 3 * random(20, 1)
    labels = torch.arange(20) % classes
    signs = torch.where(labels >= classes // 2, 1.0, -1.0).to(z)
    found = F.cross_entropy(BinaryLogits(classes)(z), labels, reduction="none")
    expected = F.softplus(-signs * z[:, 0]) + torch.tensor(classes / 2).log()
    torch.testing.assert_close(found, expected.to(found))
