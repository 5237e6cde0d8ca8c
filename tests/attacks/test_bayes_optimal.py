"""The Bayes-optimal attack: with the density of each defense it is the attack with that density written out."""

import pytest
import torch
from helpers import batch_of, small_victim
from torch import Tensor

from gibench.attacks import GradientMatching, bayes_optimal, prior_alone
from gibench.clients import FedSGD
from gibench.defenses import Defense, Density, GaussianNoise, LaplaceNoise, RandomPruning
from gibench.labels import Given
from gibench.likelihoods import Cosine, Gaussian, Laplace, Likelihood, Masked, Mixture
from gibench.priors import TotalVariation
from gibench.search import Adam, Pixels, Ramp
from gibench.types import Observation, ThreatModel

SIGMA = 0.01
WRITTEN_OUT: dict[str, tuple[Defense | None, Likelihood]] = {
    "gaussian": (GaussianNoise(sigma=SIGMA), Gaussian(sigma=SIGMA)),
    "laplace": (LaplaceNoise(scale=SIGMA), Laplace(scale=SIGMA)),
    "pruned": (RandomPruning(pruned=0.5), Masked(Gaussian())),
    "pruned, gaussian": (
        RandomPruning(pruned=0.5, noise="gaussian", scale=SIGMA),
        Mixture(noise="gaussian", scale=SIGMA, pruned=0.5),
    ),
    "pruned, laplace": (
        RandomPruning(pruned=0.5, noise="laplace", scale=SIGMA),
        Mixture(noise="laplace", scale=SIGMA, pruned=0.5),
    ),
    "none": (None, Gaussian()),
}


def observe(defense: Defense | None, *, randomness: str = "unknown", updates: int = 2) -> Observation:
    flags = {"defense": "known" if defense else "none", "defense_randomness": randomness}
    known = ThreatModel.model_validate({"victim": "initial", "batch_norm": "absent", **flags})
    client = FedSGD(small_victim(), defense=defense, threat_model=known).double()
    return client(batch_of(updates, 1).to(torch.float64))


def attack(likelihood: Likelihood | None = None, *, steps: int = 12) -> GradientMatching:
    return bayes_optimal(likelihood=likelihood, steps=steps, ramp_steps=4, restarts=2)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_it_is_the_attack_with_the_density_written_out(name: str) -> None:
    """To the bit."""
    defense, likelihood = WRITTEN_OUT[name]
    observation = observe(defense)
    found, expected = attack()(observation), attack(likelihood)(observation)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.objective, expected.objective)
    assert not torch.equal(found.images, attack(Cosine())(observation).images)


def test_the_parts_are_those_of_the_paper() -> None:
    built = bayes_optimal(tv=0.3, rate=0.2, decay=0.9, start=0.05, steps=30, ramp_steps=10)
    assert isinstance(built.likelihood, Density)
    assert isinstance(built.search, Adam)
    assert isinstance(built.search.ramp, Ramp)
    assert [built.search.factor(2), built.search.rate] == pytest.approx([0.81, 0.2])
    assert (built.search.ramp(0), built.search.ramp(10), built.search.ramp(29)) == (0.05, 1.0, 1.0)
    assert not built.pixels.box
    images = torch.rand(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    (prior,) = built.priors
    expected = TotalVariation(weight=0.3, kind="squared")(images, observe(None))
    torch.testing.assert_close(prior(images, observe(None)), expected)
    assert not bayes_optimal(tv=0.0).priors


def negative_log_posterior(likelihood: Likelihood | None, observation: Observation, images: Tensor) -> Tensor:
    """Of images (U, B, C, H, W), by the objective of the attack under its final factor."""
    built = bayes_optimal(likelihood=likelihood, tv=0.1)
    objective, start = built.problem(observation, [(0, row) for row in range(observation.updates)])
    point = {**start, "pixels": observation.victim.normalize(images)}  # type: ignore[operator]
    return objective.evaluate(point, objective.known())[0].value


@pytest.mark.parametrize("noise", ["gaussian", "laplace"])
def test_with_the_mask_the_truth_is_more_probable_than_by_the_plain_distance(noise: str) -> None:
    """The distance takes what was pruned for noise, which the density that knows the mask does not."""
    defense = RandomPruning(pruned=0.5, noise=noise, scale=SIGMA)  # type: ignore[arg-type]
    observation, truth = observe(defense, randomness="known", updates=6), batch_of(6, 1).to(torch.float64).images
    plain = Gaussian(sigma=SIGMA) if noise == "gaussian" else Laplace(scale=SIGMA)
    known, distance, blind = (
        negative_log_posterior(likelihood, observation, truth)
        for likelihood in (None, plain, Density(ignore_randomness=True))
    )
    assert (known < distance).all()
    other = truth.flip(0)
    for likelihood, at_truth in ((None, known), (Density(ignore_randomness=True), blind)):
        assert (negative_log_posterior(likelihood, observation, other) > at_truth).all()


def test_who_knows_the_mask_explains_what_was_sent_better() -> None:
    """The search with the density ends nearer the truth's own gradient than the one with the plain distance."""
    defense = RandomPruning(pruned=0.8, noise="gaussian", scale=1e-3)
    observation, batch = observe(defense, randomness="known", updates=4), batch_of(4, 1).to(torch.float64)
    truth = observation.simulate(batch.images, batch.labels)

    def error(likelihood: Likelihood | None) -> float:
        built = GradientMatching(
            likelihood=likelihood or Density(),
            search=Adam(steps=150, rate=0.05),
            labels=Given(),
            pixels=Pixels(start="gray"),
        )
        found = built(observation).images
        return float(Gaussian()(observation.simulate(found, batch.labels), truth).mean())

    assert error(None) < 0.5 * error(Gaussian(sigma=1e-3))


def test_its_prior_alone_answers_without_the_update() -> None:
    built = attack()
    first, other = (prior_alone(built)(observe(defense)) for defense in (None, GaussianNoise(sigma=1.0)))
    assert torch.equal(first.images, other.images)
    assert not torch.equal(first.images, attack()(observe(None)).images)
