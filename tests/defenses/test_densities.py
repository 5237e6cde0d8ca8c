"""Defenses that act on the update alone: what they draw against its law, and what they assume against scipy's laws."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import small_victim
from releases import Array, flat, observed, others, repeated
from scipy import stats
from torch import Tensor

from gibench.defenses import (
    Defense,
    Density,
    GaussianNoise,
    LaplaceNoise,
    RandomPruning,
)
from gibench.engine.gradient import LocalGradient
from gibench.likelihoods import Gaussian
from gibench.types import Observation

SCALE = 0.02
"""Of the noise: the update's largest entries are several times larger, most are smaller."""
RARE = 1e-4
"""Tests of laws have fixed seeds and so never fail by chance; below, a law is wrong."""

NOISY: dict[str, tuple[Defense, Any, float]] = {
    "gaussian": (GaussianNoise(sigma=SCALE), stats.norm(scale=SCALE), 0.0),
    "laplace": (LaplaceNoise(scale=SCALE), stats.laplace(scale=SCALE), 0.0),
    "pruned, gaussian": (RandomPruning(pruned=0.3, noise="gaussian", scale=SCALE), stats.norm(scale=SCALE), 0.3),
    "pruned, laplace": (RandomPruning(pruned=0.8, noise="laplace", scale=SCALE), stats.laplace(scale=SCALE), 0.8),
}
"""Defense, the law of its noise, the pruned share."""
PRUNED = [name for name in NOISY if "pruned" in name]


def masks(observation: Observation) -> Array:
    assert observation.randomness is not None
    return flat({name: observation.randomness[f"mask:{name}"] for name in observation.update})


# Laws of what is drawn.


@pytest.mark.parametrize("name", NOISY)
def test_the_noise_has_its_law_on_kept_and_on_pruned_entries(name: str) -> None:
    defense, law, pruned = NOISY[name]
    observation, truth = observed(defense)
    kept = masks(observation) if pruned else np.ones_like(flat(truth))
    noise = flat(observation.update) - kept * flat(truth)
    for where in (kept == 1, kept == 0) if pruned else (kept == 1,):
        assert stats.kstest(noise[where], law.cdf).pvalue > RARE
    neighbors = (
        np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1],
        np.corrcoef(noise.T[:-1].ravel(), noise.T[1:].ravel())[0, 1],
    )
    assert np.abs(neighbors).max() < 4 / math.sqrt(noise.size)
    other = stats.laplace if "gaussian" in name else stats.norm
    assert stats.kstest(noise.ravel(), other(scale=law.std()).cdf).pvalue < RARE  # the test has the power to tell


@pytest.mark.parametrize("name", PRUNED)
def test_without_the_mask_an_entry_has_the_law_of_the_mixture(name: str) -> None:
    """Of the entries of largest gradient, each by its own distribution function, which makes them uniform."""
    defense, law, pruned = NOISY[name]
    observation, truth = observed(defense)
    value, sent = flat(truth), flat(observation.update)
    large = np.argsort(-np.abs(value[0]))[:60]
    assert np.abs(value[0, large]).min() > SCALE
    value, sent = value[:, large], sent[:, large]
    places = (1 - pruned) * law.cdf(sent - value) + pruned * law.cdf(sent)
    assert stats.kstest(places.ravel(), "uniform").pvalue > RARE
    assert stats.kstest(law.cdf(sent - value).ravel(), "uniform").pvalue < RARE


@pytest.mark.parametrize("pruned", [0.0, 0.3, 0.9])
def test_the_pruned_share_is_binomial_and_what_is_kept_is_not_rescaled(pruned: float) -> None:
    observation, truth = observed(RandomPruning(pruned=pruned))
    kept, value = masks(observation), flat(truth)
    assert np.array_equal(flat(observation.update), np.where(kept == 1, value, 0.0))
    if pruned == 0:
        assert kept.all()
        return
    for counts, size in ((kept.sum(1), kept.shape[1]), (kept.sum(0), kept.shape[0])):
        law = stats.binom(size, 1 - pruned)
        assert stats.binomtest(int(kept.sum()), kept.size, 1 - pruned).pvalue > RARE
        assert float(np.var(counts)) == pytest.approx(law.var(), rel=0.35)  # sd of the estimate: 1 / 8 and 1 / 20
        low, high = law.interval(1 - 1e-7)
        assert low <= counts.min() <= counts.max() <= high


# What is assumed.


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("name", NOISY)
def test_differences_of_the_likelihood_are_those_of_scipy(name: str, told: bool) -> None:
    """-log p of all entries, with the constant that does not depend on the image."""
    defense, law, pruned = NOISY[name]
    observation, truth = observed(defense, 4, told=told)
    hypothesis = Density().hypothesis(observation)
    found, expected = [], []
    for simulated in (truth, *others(observation)):
        found.append(hypothesis.likelihood(simulated, hypothesis.observation.update).numpy())
        sent, value = flat(observation.update), flat(simulated)
        if pruned and told:
            density = law.logpdf(sent - masks(observation) * value)
        elif pruned:
            density = np.log((1 - pruned) * law.pdf(sent - value) + pruned * law.pdf(sent))
        else:
            density = law.logpdf(sent - value)
        expected.append(-density.sum(1))
    np.testing.assert_allclose(np.diff(found, axis=0), np.diff(expected, axis=0), rtol=1e-8, atol=1e-8)
    assert np.abs(np.diff(expected, axis=0)).min() > 1e-3


def test_ignoring_the_mask_is_not_having_it() -> None:
    defense = NOISY["pruned, gaussian"][0]
    (told, truth), (untold, _) = observed(defense, 2), observed(defense, 2, told=False)
    without = Density(ignore_randomness=True).hypothesis(told).likelihood(truth, told.update)
    assert torch.equal(without, Density().hypothesis(untold).likelihood(truth, untold.update))
    assert (without != Density().hypothesis(told).likelihood(truth, told.update)).all()


def test_a_plain_gradient_is_what_is_sent_where_nothing_is_drawn() -> None:
    """Strength 0 of each noise: the defended client sends the gradient, and the distance of the attack stays."""
    batch, distance = repeated(2), Gaussian(sigma=0.3)
    plain = LocalGradient(small_victim().double())(batch.images, batch.labels)
    for defense in (GaussianNoise(sigma=0.0), LaplaceNoise(scale=0.0), RandomPruning(pruned=0.0)):
        observation, _ = observed(defense, 2)
        for name, value in observation.update.items():
            torch.testing.assert_close(value, plain[name], rtol=1e-12, atol=1e-14)
        likelihood = Density(distance=distance).hypothesis(observation).likelihood
        near: Tensor = likelihood({name: value + 0.01 for name, value in plain.items()}, observation.update)
        torch.testing.assert_close(near, distance({name: value + 0.01 for name, value in plain.items()}, plain))
