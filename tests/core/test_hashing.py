"""Feature hashing: the map is the documented one, it is linear, and it keeps inner products and whole subspaces."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from references.hashing import coordinate, matrix
from scipy.stats import chi2
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from gibench.clients import FedSGD
from gibench.diagnostics import Jacobian
from gibench.errors import ConfigurationError, ShapeError
from gibench.hashing import FeatureHash
from gibench.types import Batch, ThreatModel, Update
from gibench.victims import lenet

SHAPES = {"conv.weight": (3, 2, 2), "fc.weight": (4, 5), "fc.bias": (4,), "scale": ()}
SIZE, BUCKETS = 37, 8
NEGATIVE = torch.tensor([1.0, -1.0])


def small(*, seed: int = 0, signed: bool = True, buckets: int = BUCKETS) -> FeatureHash:
    return FeatureHash(shapes=SHAPES, buckets=buckets, seed=seed, signed=signed)


def large(size: int, *, buckets: int, seed: int = 0, signed: bool = True) -> FeatureHash:
    return FeatureHash(shapes={"w": (size,)}, buckets=buckets, seed=seed, signed=signed)


def update(rows: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Update:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, *shape, generator=source, dtype=dtype) for name, shape in SHAPES.items()}


def flat(parts: Update) -> Tensor:
    return torch.cat([part.reshape(len(part), -1) for part in parts.values()], dim=1)


def split(index: Tensor, buckets: int) -> tuple[Tensor, Tensor]:
    """The bucket and the sign of each coordinate."""
    return index % buckets, NEGATIVE[index // buckets]


# The map


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signed", [True, False])
def test_it_sums_what_the_package_puts_into_each_bucket(signed: bool, dtype: torch.dtype) -> None:
    hashing, parts = small(seed=7, signed=signed), update(dtype=dtype)
    reference = matrix(SHAPES, buckets=BUCKETS, seed=7, signed=signed).to(dtype)
    expected = flat(parts) @ reference.T
    tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 1e-12, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    torch.testing.assert_close(hashing(parts), expected, **tolerance)
    torch.testing.assert_close(hashing.rows(flat(parts)), expected, **tolerance)
    torch.testing.assert_close(hashing.columns(flat(parts).T.contiguous()), expected.T, **tolerance)
    torch.testing.assert_close(hashing.transposed(expected), expected @ reference, **tolerance)
    assert torch.equal(hashing.occupancy(), reference.abs().sum(1).long())


@given(st.text(max_size=8), st.integers(0, 2**63), st.integers(1, 2**31), st.integers(1, 40))
def test_each_coordinate_is_hashed_as_documented(name: str, seed: int, buckets: int, size: int) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    found = FeatureHash(shapes={name: (size,)}, buckets=buckets, seed=seed).index
    places = [coordinate(name, index, buckets=buckets, seed=seed) for index in range(size)]
    assert found.tolist() == [bucket + (buckets if sign < 0 else 0) for bucket, sign in places]


def test_large_tensors_are_hashed_in_parts_without_a_seam() -> None:
    index = large(100_000, buckets=1000, seed=3).index
    for place in (0, 16_383, 16_384, 65_536, 99_999):
        bucket, sign = coordinate("w", place, buckets=1000, seed=3)
        assert index[place] == bucket + (1000 if sign < 0 else 0)


def test_the_map_is_fixed_forever() -> None:
    hashing = FeatureHash(shapes={"conv1.weight": (12, 3, 5, 5), "fc.bias": (10,)}, buckets=6144, seed=42)
    assert hashing.index[:6].tolist() == [7005, 2446, 10697, 1160, 10561, 5267]
    assert hashing.index[-4:].tolist() == [1522, 5159, 5698, 11323]


def test_another_process_builds_the_same_map() -> None:
    script = (
        "from gibench.hashing import FeatureHash\n"
        f"print(FeatureHash(shapes={dict(reversed(SHAPES.items()))}, buckets={BUCKETS}, seed=5).index.tolist())"
    )
    command = [sys.executable, "-c", script]
    repository = Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    here = FeatureHash(shapes=dict(reversed(SHAPES.items())), buckets=BUCKETS, seed=5)
    assert finished.stdout.strip() == str(here.index.tolist())


def test_order_and_neighbors_of_a_parameter_change_nothing() -> None:
    parts = update()
    turned = FeatureHash(shapes=dict(reversed(SHAPES.items())), buckets=BUCKETS, seed=0)
    torch.testing.assert_close(turned(parts), small()(parts))
    torch.testing.assert_close(small()(dict(reversed(parts.items()))), small()(parts))
    alone = FeatureHash(shapes={"fc.weight": SHAPES["fc.weight"]}, buckets=BUCKETS, seed=0)
    assert torch.equal(alone.index, small().index[12:32])


def test_seeds_names_and_buckets_each_change_the_map() -> None:
    first = large(1000, buckets=64).index
    assert torch.equal(first, large(1000, buckets=64).index)
    others = [
        large(1000, buckets=64, seed=1).index,
        FeatureHash(shapes={"v": (1000,)}, buckets=64, seed=0).index,
    ]
    for other in others:
        same = (split(first, 64)[0] == split(other, 64)[0]).double().mean().item()
        assert same < 3 / 64  # by chance 1 / 64
    assert torch.equal(large(1000, buckets=64, signed=False).index, split(first, 64)[0])  # signs change no bucket


# Statistics of the map


@pytest.mark.parametrize("buckets", [7, 64, 1000, 6144])
def test_buckets_are_filled_evenly(buckets: int) -> None:
    size = 60 * buckets
    for seed in range(3):
        counts = large(size, buckets=buckets, seed=seed).occupancy().double()
        assert counts.sum() == size
        statistic = ((counts - 60).square() / 60).sum().item()
        low, high = chi2.ppf([1e-4, 1 - 1e-4], buckets - 1)
        assert low < statistic < high  # neither clumped nor more even than chance


def test_signs_are_balanced_in_all_and_in_each_bucket() -> None:
    size, buckets = 200_000, 500
    places, signs = split(large(size, buckets=buckets).index, buckets)
    assert abs(signs.sum().item()) < 4 * size**0.5
    sums = torch.zeros(buckets).index_add(0, places, signs)
    statistic = (sums.square() / torch.bincount(places, minlength=buckets)).sum().item()
    low, high = chi2.ppf([1e-4, 1 - 1e-4], buckets)
    assert low < statistic < high
    pairs = (signs[1:] * signs[:-1]).sum().item(), (signs[256:] * signs[:-256]).sum().item()
    assert max(map(abs, pairs)) < 4 * size**0.5  # neighbors, and steps of a byte, are independent


def test_two_parameters_and_two_seeds_are_independent() -> None:
    hashing = FeatureHash(shapes={"a": (50_000,), "b": (50_000,)}, buckets=16, seed=0)
    other = FeatureHash(shapes={"a": (50_000,)}, buckets=16, seed=1)
    for left, right in ((hashing.index[:50_000], hashing.index[50_000:]), (hashing.index[:50_000], other.index)):
        counts = torch.bincount(left * 32 + right, minlength=1024).double()  # bucket and sign of both
        expected = 50_000 / 1024
        statistic = ((counts - expected).square() / expected).sum().item()
        assert statistic < chi2.ppf(1 - 1e-4, 1023)


def test_inner_products_are_kept_and_vary_as_published() -> None:
    """Weinberger et al. 2009, over 4,000 maps; the two vectors share a mean, which plain sums do not survive."""
    source = torch.Generator().manual_seed(0)
    both = torch.rand(2, 40, generator=source, dtype=torch.float64) + torch.tensor([[0.0], [0.3]], dtype=torch.float64)
    buckets, seeds = 16, 4000
    x, y = both
    products = {}
    for signed in (True, False):
        hashed = [large(40, buckets=buckets, seed=seed, signed=signed).rows(both) for seed in range(seeds)]
        products[signed] = torch.stack([a @ b for a, b in hashed])
    exact = (x @ y).item()
    cross = (x.square().sum() * y.square().sum() + (x @ y) ** 2 - 2 * (x * y).square().sum()).item()
    variance = cross / buckets
    assert abs(products[True].mean().item() - exact) < 4 * (variance / seeds) ** 0.5
    assert products[True].var().item() == pytest.approx(variance, rel=0.12)  # 5 standard errors at normal kurtosis
    bias = ((x.sum() * y.sum() - x @ y) / buckets).item()
    error = products[False].std().item() / seeds**0.5
    assert products[False].mean().item() == pytest.approx(exact + bias, abs=4 * error)
    assert bias > 100 * error


# Whole subspaces


def positive_subspace() -> Tensor:
    """128 directions in 1,280 coordinates; nearly one of them has no changes of sign, as gradients have."""
    source = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.rand(1280, 128, generator=source, dtype=torch.float64))[0]


def jacobian_of_lenet() -> tuple[Tensor, dict[str, torch.Size]]:
    """The column space of d update / d pixels, and the shapes of the update."""
    victim = lenet(image_shape=(1, 12, 12)).double().eval()
    source = torch.Generator().manual_seed(0)
    images = torch.rand(1, 1, 1, 12, 12, generator=source, dtype=torch.float64)
    batch = Batch(images=images, labels=torch.tensor([[3]]), image_ids=(("0",),), update_ids=("0",))
    observation = FedSGD(victim, threat_model=ThreatModel(victim="initial", batch_norm="absent"))(batch)
    columns = Jacobian(observation.simulate, images[0], batch.labels[0]).transposed().T
    basis = torch.linalg.svd(columns, full_matrices=False)[0]
    return basis, {name: parameter.shape for name, parameter in victim.named_parameters()}


@pytest.fixture(scope="module", params=["positive", "lenet"])
def subspace(request: pytest.FixtureRequest) -> tuple[Tensor, dict[str, torch.Size]]:
    if request.param == "lenet":
        return jacobian_of_lenet()
    return positive_subspace(), {"a": torch.Size((780,)), "b": torch.Size((5, 100))}


@pytest.mark.parametrize("ratio", [2, 4])
def test_every_direction_of_a_subspace_keeps_its_length(
    subspace: tuple[Tensor, dict[str, torch.Size]], ratio: int
) -> None:
    """Within 1 +- sqrt(N / K), a Gaussian sketch's limit, and 0.1 for chance; plain sums stretch the common mean."""
    basis, shapes = subspace
    buckets = ratio * basis.shape[1]
    spread = ratio**-0.5
    edges = []
    for seed in range(3):
        hashing = FeatureHash(shapes=shapes, buckets=buckets, seed=seed)
        values = torch.linalg.svdvals(hashing.rows(basis.T))
        assert 1 - spread - 0.1 < values[-1] < 1 - spread + 0.1  # from below and from above
        assert 1 + spread - 0.1 < values[0] < 1 + spread + 0.1
        edges.append(values[0].item())
        plain = FeatureHash(shapes=shapes, buckets=buckets, seed=seed, signed=False)
        assert torch.linalg.svdvals(plain.rows(basis.T))[0] > 1 + spread + 0.2
    assert len(set(edges)) == 3


# A linear map under autograd


@given(st.integers(0, 100), st.floats(-3, 3), st.booleans())
def test_it_is_linear_and_handles_updates_one_by_one(seed: int, factor: float, signed: bool) -> None:
    hashing, x, y = small(signed=signed), update(seed=seed), update(seed=seed + 1)
    mixed = {name: x[name] + factor * y[name] for name in x}
    torch.testing.assert_close(hashing(mixed), hashing(x) + factor * hashing(y))
    alone = [hashing({name: part[row : row + 1] for name, part in x.items()})[0] for row in range(3)]
    assert torch.equal(hashing(x), torch.stack(alone))


@pytest.mark.parametrize("signed", [True, False])
def test_the_transposed_map_is_adjoint(signed: bool) -> None:
    hashing, hashed = small(signed=signed), torch.randn(3, BUCKETS, dtype=torch.float64)
    left, right = hashing.rows(flat(update())), hashing.transposed(hashed)
    torch.testing.assert_close((left * hashed).sum(1), (flat(update()) * right).sum(1))


@pytest.mark.parametrize("signed", [True, False])
def test_derivatives_are_the_map_itself(signed: bool) -> None:
    hashing, x, direction = small(signed=signed), update(), update(seed=1)
    value, along = jvp(hashing, (x,), (direction,))
    assert torch.equal(value, hashing(x))
    torch.testing.assert_close(along, hashing(direction))
    cotangent = torch.randn(3, BUCKETS, dtype=torch.float64)
    torch.testing.assert_close(flat(vjp(hashing, x)[1](cotangent)[0]), hashing.transposed(cotangent))
    found = grad(lambda parts: hashing(parts).square().sum())(x)
    torch.testing.assert_close(flat(found), 2 * hashing.transposed(hashing(x)))


def test_vmap_over_directions_agrees_with_plain_calls() -> None:
    hashing, x = small(), update()
    directions = torch.stack([flat(update(seed=seed)) for seed in range(4)])  # (4, 3, P)
    plain = torch.stack([hashing.rows(direction) for direction in directions])
    assert torch.equal(vmap(hashing.rows)(directions), plain)

    def residual(scale: Tensor) -> Tensor:
        return hashing({name: scale.square() * part for name, part in x.items()})

    one, scales = torch.ones((), dtype=torch.float64), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    pushed = vmap(lambda scale: jvp(residual, (scale,), (one,))[1])(scales)
    torch.testing.assert_close(pushed, 2 * scales[:, None, None] * hashing(x))
    second = vmap(grad(grad(lambda scale: residual(scale).square().sum())))(scales)
    torch.testing.assert_close(second, 12 * scales.square() * hashing(x).square().sum())


def test_plain_autograd_goes_through_columns() -> None:
    hashing = small()
    matrix_ = flat(update()).T.contiguous().requires_grad_()
    hashed = hashing.columns(matrix_)
    hashed.square().sum().backward()
    torch.testing.assert_close(matrix_.grad, 2 * hashing.transposed(hashed.detach().T).T)


def test_moving_it_moves_the_map_and_no_type_changes_it() -> None:
    hashing = small()
    hashing.columns(torch.zeros(SIZE, 2))
    moved = small().to("meta")
    assert moved.rows(torch.zeros(2, SIZE, device="meta")).device.type == "meta"
    assert moved.columns(torch.zeros(SIZE, 2, device="meta")).device.type == "meta"
    assert hashing.double().index.dtype == torch.int64
    assert hashing.double()(update(dtype=torch.float32)).dtype == torch.float32
    assert not hashing.state_dict()
    assert small().index.data_ptr() == small().index.data_ptr()  # shared, not built twice


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_same_sums() -> None:
    hashing, parts = small().cuda(), update()
    there = {name: part.cuda() for name, part in parts.items()}
    torch.testing.assert_close(hashing(there).cpu(), small()(parts))
    torch.testing.assert_close(hashing.columns(flat(there).T.contiguous()).cpu(), small()(parts).T)


# Bad input


@pytest.mark.parametrize("buckets", [0, -3])
def test_too_few_buckets_are_an_error(buckets: int) -> None:
    with pytest.raises(ConfigurationError, match=f"buckets is {buckets}"):
        small(buckets=buckets)


@pytest.mark.parametrize("shapes", [{}, {"w": (0,)}])
def test_nothing_to_hash_is_an_error(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ConfigurationError, match="nothing to hash"):
        FeatureHash(shapes=shapes, buckets=4, seed=0)


def test_foreign_updates_are_an_error_that_says_which() -> None:
    hashing, parts = small(), update()
    with pytest.raises(ShapeError, match=r"lacks \['fc.bias', 'scale'\]; "):
        hashing({name: part for name, part in parts.items() if name not in ("scale", "fc.bias")})
    with pytest.raises(ShapeError, match=r"adds \['extra'\]"):
        hashing({**parts, "extra": torch.zeros(3, 1)})
    with pytest.raises(ShapeError, match=r"lacks \['scale'\] and adds \['Scale'\]"):
        hashing({name.replace("scale", "Scale"): part for name, part in parts.items()})
    for wrong in (parts["fc.weight"].mT, parts["fc.weight"][0], parts["fc.weight"][:2], parts["fc.weight"].flatten(1)):
        with pytest.raises(ShapeError, match=r"'fc.weight' has shape .* pass \(U, \*\(4, 5\)\)"):
            hashing({**parts, "fc.weight": wrong})


def test_matrices_of_the_wrong_size_are_an_error() -> None:
    hashing = small()
    with pytest.raises(ShapeError, match=r"\(2, 36\); pass \(k, 37\)"):
        hashing.rows(torch.zeros(2, 36))
    with pytest.raises(ShapeError, match=r"pass \(37, k\)"):
        hashing.columns(torch.zeros(2, 37))
    with pytest.raises(ShapeError, match=r"pass \(k, 8\)"):
        hashing.transposed(torch.zeros(8))
