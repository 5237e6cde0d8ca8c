"""Quantization, pruning by magnitude and signs: what is sent, entry by entry, and that the truth agrees with it."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from releases import flat, observed, others, released
from scipy import stats

from gibench.defenses import (
    Defense,
    Density,
    MagnitudePruning,
    Quantization,
    RandomPruning,
    SignCompression,
    quantization,
)
from gibench.likelihoods import Gaussian

RARE = 1e-4
"""Tests of laws have fixed seeds and so never fail by chance; below, a law is wrong."""


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_quantized_entries_lie_on_the_grid_beside_what_they_were(bits: int, rounding: Any) -> None:
    observation, truth = observed(Quantization(bits=bits, rounding=rounding), 20)
    for name, value in observation.update.items():
        steps = truth[name].flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
        steps = steps.reshape(-1, *[1] * (value.ndim - 1))
        levels = value / steps
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
        assert levels.abs().max() <= 2 ** (bits - 1) - 1 + 1e-9
        torch.testing.assert_close(value.flatten(1).abs().amax(1), truth[name].flatten(1).abs().amax(1))
        error = ((value - truth[name]) / steps).abs().max()
        assert error <= (0.5 if rounding == "nearest" else 1) + 1e-9


def test_stochastic_rounding_goes_up_as_often_as_keeps_the_mean() -> None:
    """The share of each entry against the binomial law, and against what the likelihood says of both neighbors."""
    defense, count = Quantization(bits=2, rounding="stochastic"), 4000
    value = torch.tensor([1.0, -0.83, -0.5, -1e-3, 0.0, 0.17, 0.6, 0.999], dtype=torch.float64)
    sent = released(defense, {"w": value.expand(count, -1)})["w"]
    assert (sent[:, [0, 4]] == value[[0, 4]]).all()
    observation, _ = observed(defense, 1)
    likelihood = defense.assume(observation, Gaussian()).likelihood
    for place, entry in enumerate(value.tolist()):
        if entry in (0.0, 1.0):
            continue
        low = math.floor(entry)
        ups = int((sent[:, place] == low + 1).sum())
        assert set(sent[:, place].tolist()) <= {low, low + 1.0}
        assert stats.binomtest(ups, count, entry - low).pvalue > RARE
        energies = []
        for level in (low, low + 1):
            neighbor = sent[:1].clone()
            neighbor[0, place] = level
            energies.append(likelihood({"w": value[None]}, {"w": neighbor}).item())
        if 0.01 < entry - low < 0.99:  # beyond, the tail begins
            assert math.exp(energies[0] - energies[1]) == pytest.approx((entry - low) / (1 - entry + low))
    assert abs(sent.mean(0) - value).max() < 5 / math.sqrt(count)


def test_rounding_leaves_zeros_and_zero_tensors_alone() -> None:
    zeros = {"w": torch.zeros(3, 4), "b": torch.tensor([[0.0, 1.0]]).expand(3, 2)}
    for rounding in ("nearest", "stochastic"):
        sent = released(Quantization(bits=3, rounding=rounding), zeros)
        assert all(torch.equal(sent[name], value) for name, value in zeros.items())


def test_a_zero_is_sent_as_zero_whatever_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """In single precision the largest uniform numbers below 1 are 1."""
    monkeypatch.setattr(
        quantization, "uniform_rows", lambda shape, seeds, *_: torch.full((len(seeds), *shape), 1 - 2**-53).double()
    )
    update = {"w": torch.tensor([[0.0, -0.3, 1.0]])}
    assert released(Quantization(bits=3, rounding="stochastic"), update)["w"][0, 0] == 0


# Pruning by magnitude, and signs.


@pytest.mark.parametrize("pruned", [0.0, 0.29, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_exactly_the_largest_entries_are_kept(scope: Any, pruned: float) -> None:
    observation, truth = observed(MagnitudePruning(pruned=pruned, scope=scope), 2)
    groups = [[name] for name in truth] if scope == "tensor" else [list(truth)]
    for names in groups:
        sent, value = (flat({name: part[name] for name in names}) for part in (observation.update, truth))
        count = math.ceil((1 - Fraction(str(pruned))) * value.shape[1])
        for row in range(2):
            kept = sent[row] != 0
            assert kept.sum() == count
            assert np.array_equal(sent[row][kept], value[row][kept])
            assert np.abs(value[row][~kept]).max(initial=0.0) <= np.abs(sent[row][kept]).min()


def test_ties_of_magnitude_are_broken_by_the_order() -> None:
    value = torch.ones(1, 1000)
    value[0, ::2] = -1
    value[0, 500] = 2
    sent = released(MagnitudePruning(pruned=0.99), {"w": value})["w"]
    assert sent.nonzero()[:, 1].tolist() == [*range(9), 500]


@given(
    entries=st.lists(st.lists(st.integers(-3, 3), min_size=12, max_size=12), min_size=1, max_size=4),
    pruned=st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.9, 0.99]),
)
def test_what_is_kept_is_what_a_stable_sort_puts_first(entries: list[list[int]], pruned: float) -> None:
    value = np.array(entries, dtype=np.float32)
    count = math.ceil((1 - Fraction(str(pruned))) * value.shape[1])
    wanted = np.zeros_like(value)
    for row, found in zip(value, wanted, strict=True):
        first = np.argsort(-np.abs(row), kind="stable")[:count]
        found[first] = row[first]
    sent = released(MagnitudePruning(pruned=pruned), {"w": torch.from_numpy(value)})["w"]
    assert np.array_equal(sent.numpy(), wanted)


@pytest.mark.parametrize("broken", [1, 10, 40])
def test_what_is_not_finite_is_not_hidden(broken: int) -> None:
    value = torch.ones(1, 100)
    value[0, :broken] = float("nan")
    sent = released(MagnitudePruning(pruned=0.9), {"w": value})["w"]
    assert sent[0, :broken].isnan().all()


def test_signs_of_the_whole_update_and_zero_stays_zero() -> None:
    value = torch.tensor([[-3.0, -1e-30, 0.0, 1e-30, 2.0]])
    assert released(SignCompression(), {"w": value})["w"].tolist() == [[-1, -1, 0, 1, 1]]


EXACT: dict[str, Defense] = {
    "rounded to nearest": Quantization(bits=4),
    "rounded to nearest, two bits": Quantization(bits=2),
    "largest of each tensor": MagnitudePruning(pruned=0.7),
    "largest of all": MagnitudePruning(pruned=0.9, scope="global"),
    "pruned at random": RandomPruning(pruned=0.5),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", EXACT)
def test_without_noise_the_truth_is_never_contradicted(name: str, dtype: torch.dtype) -> None:
    """Zero at the truth, also where the released update is what another precision makes of it; not so elsewhere."""
    observation, truth = observed(EXACT[name], 5)
    simulated, sent = ({key: value.to(dtype) for key, value in part.items()} for part in (truth, observation.update))
    likelihood = Density().hypothesis(observation).likelihood
    assert likelihood(simulated, sent).max() < (1e-20 if dtype == torch.float64 else 1e-8)
    wrong = others(observation)[0]
    assert likelihood({key: value.to(dtype) for key, value in wrong.items()}, sent).min() > 1e-5


@pytest.mark.parametrize("rate", [0.0, 1e-3, 1.0])
def test_an_inequality_holds_what_pruning_by_magnitude_erased(rate: float) -> None:
    """An entry that was erased costs nothing up to tau, and the square of what is above it beyond."""
    value = torch.tensor([[0.1, -0.2, 0.5, -0.8]], dtype=torch.float64)
    defense = MagnitudePruning(pruned=0.5)
    sent = released(defense, {"w": value})
    likelihood = defense.assume(observed(defense, 1)[0], Gaussian()).likelihood
    moved = value + rate * torch.tensor([[0.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
    expected = max(0.0, 0.2 + rate - 0.5) ** 2
    assert likelihood({"w": moved}, sent).item() == pytest.approx(expected, abs=1e-15)
