"""Singular values against a slow Jacobian, known null spaces, estimates against exact, bounds against simulation."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import batch_of, fully_connected, small_victim
from hypothesis import given
from hypothesis import strategies as st
from references.jacobians import posterior_errors, update_jacobian
from torch import Tensor, nn

from gibench.clients import Client, FedAvg, FedSGD, SecureAggregation
from gibench.defenses import DPSGD, GaussianNoise, MagnitudePruning
from gibench.diagnostics import (
    Jacobian,
    Spectrum,
    bayesian_psnr_bound,
    effective_directions,
    estimated_spectrum,
    exact_spectrum,
    identifiability,
    in_double,
    information,
    jacobian_spectrum,
    read_identifiability,
    unbiased_psnr_bound,
    write_identifiability,
)
from gibench.diagnostics.cramer_rao import PRIOR_VARIANCE
from gibench.diagnostics.identifiability import released
from gibench.errors import ConfigurationError, NonFiniteError, RecordError, RefusalError, ShapeError
from gibench.types import Batch, ThreatModel, Update
from gibench.victims import Victim, lenet, seeded

SIDE = 4


def double(updates: int, size: int) -> Batch:
    return batch_of(updates, size, side=SIDE).to(torch.float64)


def jacobian_of(client: Client, batch: Batch) -> Jacobian:
    return Jacobian(in_double(client).simulate, batch.images[0], batch.labels[0])


def batch_norm_client(regime: str) -> Client:
    return FedSGD(
        small_victim(batch_norm=True, side=SIDE),
        threat_model=ThreatModel.model_validate({"victim": "initial", "batch_norm": regime}),
    )


def matrix_as_update(matrix: Tensor) -> Callable[[Tensor, Tensor], Update]:
    """A client whose update is linear in its images."""
    return lambda images, _labels: {"g": images.flatten(1) @ matrix.mT}


def diagonal(values: list[float], observations: int | None = None) -> Spectrum:
    return Spectrum(torch.tensor(values, dtype=torch.float64), observations or len(values), 1e-12)


@pytest.mark.parametrize(
    ("victim", "size", "side"),
    [(small_victim, 1, SIDE), (small_victim, 3, SIDE), (fully_connected, 2, 2)],
    ids=["one image", "three images", "fully connected"],
)
def test_the_jacobian_is_that_of_plain_double_backward(victim: Callable[..., Victim], size: int, side: int) -> None:
    batch = batch_of(1, size, side=side).to(torch.float64)
    client = in_double(FedSGD(victim(side=side)))
    jacobian = jacobian_of(client, batch)
    slow = update_jacobian(client.victim, batch.images[0], batch.labels[0])
    torch.testing.assert_close(jacobian.transposed().mT, slow)
    some = torch.randn(3, jacobian.columns, dtype=torch.float64), torch.randn(3, jacobian.rows, dtype=torch.float64)
    torch.testing.assert_close(jacobian.times(some[0]), some[0] @ slow.mT)
    torch.testing.assert_close(jacobian.transposed_times(some[1]), some[1] @ slow)
    torch.testing.assert_close(exact_spectrum(jacobian).values[: min(slow.shape)], torch.linalg.svdvals(slow))


@pytest.mark.parametrize("regime", ["eval", "private"])
def test_the_batch_norm_regime_is_the_clients(regime: str) -> None:
    batch, client = double(1, 3), in_double(batch_norm_client(regime))
    jacobian = jacobian_of(client, batch)
    slow = update_jacobian(client.victim, batch.images[0], batch.labels[0])
    torch.testing.assert_close(jacobian.transposed().mT, slow)
    other = jacobian_of(batch_norm_client("private" if regime == "eval" else "eval"), batch)
    assert not torch.allclose(jacobian.transposed(), other.transposed())


def test_local_steps_and_aggregation_are_differentiated_as_they_are_simulated() -> None:
    batch = double(1, 2)
    steps = jacobian_of(FedAvg(small_victim(side=SIDE), steps=2, local_batch_size=1, rate=0.3), batch)
    matrix, shift = steps.transposed().mT, 1e-6 * torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    client = in_double(FedAvg(small_victim(side=SIDE), steps=2, local_batch_size=1, rate=0.3))
    ends = [client.simulate((batch.images[0] + side * shift)[None], batch.labels) for side in (1, -1)]
    change = torch.cat([(ends[0][name] - ends[1][name]).flatten() / 2 for name in ends[0]])
    torch.testing.assert_close(matrix @ shift.flatten(), change, rtol=1e-5, atol=1e-12)
    alone = jacobian_of(FedSGD(small_victim(side=SIDE)), batch)
    together = jacobian_of(SecureAggregation(FedSGD(small_victim(side=SIDE)), clients=2), batch)
    torch.testing.assert_close(together.transposed(), alone.transposed())


class _BlockMeans(nn.Module):
    """Averages 2 x 2 pixels: three of four directions are lost."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 2)


def averaging() -> Victim:
    def build() -> nn.Module:
        return nn.Sequential(_BlockMeans(), nn.Flatten(), nn.Linear(12, 16), nn.Sigmoid(), nn.Linear(16, 10))

    return Victim(
        seeded(build, 0),
        architecture="averaging",
        image_shape=(3, SIDE, SIDE),
        num_classes=10,
        initialization="default",
    )


def test_a_net_that_averages_loses_just_what_it_averages() -> None:
    found = exact_spectrum(jacobian_of(FedSGD(averaging()), double(1, 1)))
    assert (found.unknowns, found.null_directions, found.rank) == (48, 36, 12)
    assert found.gap is None or found.gap > 1e6
    assert found.condition < 1e6


def test_two_copies_of_an_image_hide_their_difference() -> None:
    """To first order the mean of the gradients of twins sees the sum of their changes only."""
    one = double(1, 1)
    twins = Batch(
        images=one.images.repeat(1, 2, 1, 1, 1),
        labels=one.labels.repeat(1, 2),
        image_ids=(("a", "b"),),
        update_ids=("twins",),
    )
    alone = exact_spectrum(jacobian_of(FedSGD(small_victim(side=SIDE)), one))
    both = exact_spectrum(jacobian_of(FedSGD(small_victim(side=SIDE)), twins))
    assert alone.null_directions == 0
    assert both.null_directions == one.images.numel()
    torch.testing.assert_close(both.values[: both.rank], alone.values / math.sqrt(2))


def test_a_trace_of_one_part_in_a_billion_is_told_from_none() -> None:
    """J^T J would lose it."""
    turn = torch.linalg.qr(torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    matrix = turn * torch.tensor([1, 1, 1, 1, 1, 1e-9, 0, 0], dtype=torch.float64)
    found = jacobian_spectrum(matrix_as_update(matrix), torch.rand(1, 1, 2, 4, dtype=torch.float64), torch.zeros(1))
    assert isinstance(found, Spectrum)
    assert found.null_directions == 2
    assert found.condition == pytest.approx(1e9, rel=1e-5)


def test_fewer_observations_than_unknowns_leave_the_rest() -> None:
    matrix = torch.randn(5, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = jacobian_spectrum(matrix_as_update(matrix), torch.rand(1, 3, 2, 2, dtype=torch.float64), torch.zeros(1))
    assert isinstance(found, Spectrum)
    assert found.null_directions == 7
    assert len(found.values) == 12


def test_estimates_agree_with_the_exact_spectrum_within_their_errors() -> None:
    jacobian = jacobian_of(FedSGD(small_victim(side=SIDE)), double(1, 1))
    exact, estimate = exact_spectrum(jacobian), estimated_spectrum(jacobian, probes=24, steps=40)
    assert estimate.largest == pytest.approx(float(exact.values[0]), rel=1e-6)
    assert estimate.smallest >= float(exact.values[-1]) * (1 - 1e-9)
    assert float(estimate.weights.sum(1).mean()) == pytest.approx(exact.unknowns)
    for relative in (1e-1, 1e-2):
        sigma = relative * float(jacobian.update.square().mean().sqrt())
        for measure in (effective_directions, information, bayesian_psnr_bound):
            true, guess = (measure(spectrum, sigma=sigma) for spectrum in (exact, estimate))
            assert true.error == 0
            assert 0 < guess.error < 0.1 * abs(true.value)
            assert abs(guess.value - true.value) < 4 * guess.error + 1e-6 * abs(true.value)


def test_as_many_steps_as_directions_are_exact_in_sum() -> None:
    """All Ritz values are then singular values; a degenerate end of the process does no harm."""
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=torch.float64))
    jacobian = Jacobian(matrix_as_update(matrix), torch.rand(1, 1, 2, 2, dtype=torch.float64), torch.zeros(1))
    found = estimated_spectrum(jacobian, probes=2, steps=10)
    assert found.total(lambda s: s**2).value == pytest.approx(14)  # Hutchinson's signs are exact on a diagonal
    assert found.total(lambda s: 1 / (1 + s**2)).value == pytest.approx(1 / 10 + 1 / 5 + 1 / 2 + 1)


def test_the_bound_with_a_prior_is_what_the_posterior_mean_reaches() -> None:
    source = torch.Generator().manual_seed(3)
    matrix = torch.randn(10, 16, generator=source, dtype=torch.float64)  # six null directions
    spectrum = Spectrum(torch.linalg.svdvals(torch.cat([matrix, matrix.new_zeros(6, 16)])), 10, 1e-12)
    for sigma in (3.0, 0.3, 0.01):
        errors = posterior_errors(matrix, sigma=sigma, prior_variance=0.2, draws=20000, source=source)
        reached = -10 * math.log10(errors.mean())
        assert bayesian_psnr_bound(spectrum, sigma=sigma, prior_variance=0.2).value == pytest.approx(reached, abs=0.06)
    limit = -10 * math.log10(0.2 * 6 / 16)
    assert bayesian_psnr_bound(spectrum, sigma=0.0, prior_variance=0.2).value == pytest.approx(limit)
    assert bayesian_psnr_bound(spectrum, sigma=1e-7, prior_variance=0.2).value == pytest.approx(limit, abs=1e-6)


def test_the_unbiased_bound_is_the_variance_of_least_squares() -> None:
    values = [2.0, 1.0, 0.5, 0.0]
    expected = -10 * math.log10(0.01 * (1 / 4 + 1 + 4) / 4)
    assert unbiased_psnr_bound(diagonal(values), sigma=0.1) == pytest.approx(expected)
    assert unbiased_psnr_bound(diagonal(values), sigma=0.0) == 100.0


@given(
    values=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8),
    sigma=st.floats(1e-4, 1e2),
    factor=st.floats(1.1, 100),
)
def test_more_noise_never_says_more(values: list[float], sigma: float, factor: float) -> None:
    spectrum = diagonal(sorted(values, reverse=True))
    for measure in (bayesian_psnr_bound, effective_directions, information):
        assert measure(spectrum, sigma=factor * sigma).value <= measure(spectrum, sigma=sigma).value + 1e-9
    with_prior = bayesian_psnr_bound(spectrum, sigma=sigma).value
    assert with_prior >= unbiased_psnr_bound(spectrum, sigma=sigma) - 1e-9  # a prior helps
    assert with_prior >= -10 * math.log10(1 / 12) - 1e-9
    assert 0 <= effective_directions(spectrum, sigma=sigma).value <= len(values)


def test_without_noise_the_rank_is_what_counts() -> None:
    spectrum = diagonal([2.0, 1.0, 0.0, 0.0])
    assert effective_directions(spectrum, sigma=0.0).value == 2
    with pytest.raises(ConfigurationError, match="infinitely much"):
        information(spectrum, sigma=0.0)
    with pytest.raises(ConfigurationError, match="sigma >= 0"):
        bayesian_psnr_bound(spectrum, sigma=-1.0)
    estimate = estimated_spectrum(jacobian_of(FedSGD(small_victim(side=SIDE)), double(1, 1)), probes=2, steps=3)
    with pytest.raises(ConfigurationError, match="estimated spectrum"):
        bayesian_psnr_bound(estimate, sigma=0.0)


def test_a_diagnosis_says_what_noise_the_client_adds_and_what_it_leaves_out() -> None:
    batch = batch_of(1, 2, side=SIDE)
    plain = identifiability(in_double(FedSGD(small_victim(side=SIDE))), batch, scenario="s")
    assert (plain.method, plain.unknowns, plain.own_noise) == ("exact", 96, False)
    assert [floor.relative for floor in plain.floors] == [1e-1, 1e-2, 1e-3, 1e-4]  # exactly: the report groups by them
    assert plain.labels == tuple(batch.labels[0].tolist())
    noisy = identifiability(
        in_double(FedSGD(small_victim(side=SIDE), defense=GaussianNoise(sigma=0.01))), batch, scenario="s"
    )
    assert [floor.sigma for floor in noisy.floors] == [0.01]
    assert noisy.own_noise
    assert noisy.largest == pytest.approx(plain.largest)
    silent = identifiability(
        in_double(FedSGD(small_victim(side=SIDE), defense=GaussianNoise(sigma=0.0))), batch, scenario="s"
    )
    assert not silent.own_noise
    pruned = identifiability(
        in_double(FedSGD(small_victim(side=SIDE), defense=MagnitudePruning(pruned=0.9))), batch, scenario="s"
    )
    assert "MagnitudePruning" in str(pruned.remark)
    clipped = identifiability(
        in_double(FedSGD(small_victim(side=SIDE), defense=DPSGD(clip=1e-3, noise_multiplier=2.0))), batch, scenario="s"
    )
    assert clipped.floors[0].sigma == pytest.approx(2.0 * 1e-3 / 2)
    assert clipped.largest < plain.largest


def test_shared_statistics_are_named_as_left_out() -> None:
    batch = double(1, 2)
    assert released(in_double(batch_norm_client("private")), batch).remark is None
    assert "shared BatchNorm statistics" in str(released(in_double(batch_norm_client("shared")), batch).remark)
    for defense, named in ((MagnitudePruning(pruned=0.5), True), (GaussianNoise(sigma=0.1), False)):
        threat_model = ThreatModel(victim="initial", batch_norm="shared", defense="known")
        victim = small_victim(batch_norm=True, side=SIDE)
        client = FedSGD(victim, threat_model=threat_model, defense=defense)
        remark = str(released(in_double(client), batch).remark)
        assert "shared BatchNorm statistics" in remark
        assert ("MagnitudePruning" in remark) == named


def test_a_mean_of_psnrs_may_exceed_that_of_the_least_expected_error() -> None:
    """Of one pixel: the posterior mean attains the bound on E[MSE], and the mean of its PSNRs lies above."""
    source = torch.Generator().manual_seed(0)
    tau, sigma = PRIOR_VARIANCE**0.5, 0.1
    x = tau * torch.randn(20_000, generator=source, dtype=torch.float64)
    g = x + sigma * torch.randn(x.shape, generator=source, dtype=torch.float64)
    errors = (g * tau**2 / (tau**2 + sigma**2) - x).square()
    bound = bayesian_psnr_bound(diagonal([1.0]), sigma=sigma).value
    assert -10 * math.log10(float(errors.mean())) == pytest.approx(bound, abs=0.1)
    assert float((-10 * errors.log10()).mean()) > bound + 3


def test_the_large_are_estimated_and_the_too_large_refused_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gibench.diagnostics.spectrum.MOST_MEMORY", 1000)
    client, batch = in_double(FedSGD(small_victim(side=SIDE))), batch_of(1, 1, side=SIDE)
    found = identifiability(client, batch, scenario="s")
    assert (found.method, found.null_directions, found.noise_free_psnr) == ("estimated", None, None)
    assert found.floors[0].psnr_error > 0
    with pytest.raises(ConfigurationError, match="choose method 'estimated'"):
        identifiability(client, batch, scenario="s", method="exact")


def test_errors_are_named() -> None:
    batch, client = batch_of(1, 1, side=SIDE), FedSGD(small_victim(side=SIDE))
    with pytest.raises(ShapeError, match=r"\(B, C, H, W\)"):
        jacobian_spectrum(client.simulate, batch.images, batch.labels)
    broken = FedSGD(small_victim(side=SIDE))
    next(broken.victim.parameters()).data.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="weights"):
        jacobian_spectrum(broken.simulate, batch.images[0], batch.labels[0])
    with pytest.raises(ConfigurationError, match="probes is 1"):
        estimated_spectrum(jacobian_of(client, double(1, 1)), probes=1)
    silent = FedSGD(small_victim(side=SIDE))
    for parameter in silent.victim.parameters():
        parameter.data.zero_()
    silent.victim.network[-1].bias.data[:] = torch.tensor([1e4] + [0.0] * 9)  # type: ignore[index]
    sure = batch.model_copy(update={"labels": torch.zeros(1, 1, dtype=torch.int64)})
    with pytest.raises(RefusalError, match="zero everywhere"):
        identifiability(in_double(silent), sure, scenario="s")


def test_diagnoses_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "identifiability.jsonl"
    assert read_identifiability(path) == []
    found = [identifiability(in_double(FedSGD(small_victim(side=SIDE))), batch_of(1, 1, side=SIDE), scenario="s")]
    write_identifiability(found, path)
    assert read_identifiability(path) == found
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(RecordError, match="line 2"):
        read_identifiability(path)


@pytest.mark.slow
@pytest.mark.parametrize(("labels", "nulls"), [((3,), 0), ((3, 7), 240), ((3, 3), 240)])
def test_lenet_discards_240_directions_of_two_images_and_none_of_one(labels: tuple[int, ...], nulls: int) -> None:
    """Minutes: of B = 2, 6,144 directions."""
    source = torch.Generator().manual_seed(0)
    images = torch.rand(len(labels), 3, 32, 32, generator=source, dtype=torch.float64)
    found = jacobian_spectrum(in_double(FedSGD(lenet())).simulate, images, torch.tensor(labels), method="exact")
    assert isinstance(found, Spectrum)
    assert found.null_directions == nulls
    assert found.gap is None or found.gap > 1e6
