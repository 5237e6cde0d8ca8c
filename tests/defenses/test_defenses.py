"""Every defense keeps one contract: the truth is likely, rows are independent, and no more is told than is granted."""

from collections.abc import Callable
from math import inf, nan

import pytest
import torch
from helpers import batch_of, small_victim
from releases import DEFENSES

import gibench.defenses
from gibench.attacks import bayes_optimal
from gibench.clients import FedSGD, SecureAggregation
from gibench.defenses import (
    Defense,
    Density,
    GaussianNoise,
    LaplaceNoise,
    MagnitudePruning,
    Precode,
    Quantization,
    RandomPruning,
    Soteria,
)
from gibench.errors import ConfigurationError, GibenchError, ThreatModelError
from gibench.inversion import GradientInversion
from gibench.types import Batch, Observation, ThreatModel
from gibench.victims import Victim, mlp

SMALL = (3, 8, 8)
DRAWN = [name for name in DEFENSES if not name.startswith(("Magnitude", "Sign", "Soteria")) and name != "Quantization"]
"""Those that draw something; ATS draws the sign of one operation alone."""
HIDDEN = ("InstaHide", "unknown")
"""What its random signs leave, the private images explain no better than others: that is its purpose."""


def granted(defense: str = "known", randomness: str = "unknown") -> ThreatModel:
    flags = {"defense": defense, "defense_randomness": randomness}
    return ThreatModel.model_validate({"victim": "initial", "batch_norm": "absent", **flags})


def observe(name: str, updates: int, *, randomness: str = "unknown", seed: int = 0) -> tuple[Observation, Batch]:
    defense, victim, size = DEFENSES[name]
    known = granted(randomness=randomness)
    batch = batch_of(updates, size).to(torch.float64)
    return FedSGD(victim(), defense=defense, threat_model=known, seed=seed).double()(batch), batch


def test_every_defense_is_in_the_table() -> None:
    exported = {getattr(gibench.defenses, name) for name in gibench.defenses.__all__}
    kinds = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, Defense)} - {Defense}
    assert {type(defense) for defense, _, _ in DEFENSES.values()} == kinds


@pytest.mark.parametrize(
    ("name", "randomness"),
    [(name, randomness) for name in DEFENSES for randomness in ("known", "unknown") if (name, randomness) != HIDDEN],
)
def test_the_truth_is_more_likely_than_another_image(name: str, randomness: str) -> None:
    """In the mean over updates, with what the threat model grants; without it, of what is transformed or mixed."""
    observation, batch = observe(name, 40, randomness=randomness)
    hypothesis = Density().hypothesis(observation)
    known = dict(hypothesis.known)
    if hypothesis.hidden:
        shape = (*batch.labels.shape, *hypothesis.hidden.shape)
        known[hypothesis.hidden.name] = torch.zeros(shape, dtype=torch.float64)
    other = batch.images.flip(0)
    values = [
        hypothesis.likelihood(
            hypothesis.observation.simulate(images, batch.labels, **known), hypothesis.observation.update
        )
        for images in (batch.images, other)
    ]
    assert values[0].isfinite().all()
    assert values[0].mean() < values[1].mean()


@pytest.mark.parametrize("name", DEFENSES)
def test_a_row_is_the_same_alone_and_in_a_group(name: str) -> None:
    together, batch = observe(name, 3, randomness="known")
    defense, victim, _ = DEFENSES[name]
    client = FedSGD(victim(), defense=defense, threat_model=granted(randomness="known")).double()
    for row in (2, 0):
        alone = client(batch.model_copy(update={key: getattr(batch, key)[row : row + 1] for key in Batch.model_fields}))
        for key, value in alone.update.items():
            torch.testing.assert_close(value[0], together.update[key][row], rtol=1e-9, atol=1e-13)
        assert alone.randomness is not None
        assert together.randomness is not None
        assert alone.randomness.keys() == together.randomness.keys()
        for key, value in alone.randomness.items():
            assert torch.equal(value[0], together.randomness[key][row])


@pytest.mark.parametrize("name", DEFENSES)
def test_what_is_drawn_depends_on_the_clients_seed(name: str) -> None:
    """And on nothing else: neither PyTorch's own state nor how often the client was asked."""
    first, again, other = (observe(name, 4, seed=seed)[0].update for seed in (0, 0, 1))
    torch.manual_seed(9)
    state = torch.get_rng_state()
    third = observe(name, 4)[0].update
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, again[key]) and torch.equal(value, third[key]) for key, value in first.items())
    same = all(torch.equal(value, other[key]) for key, value in first.items())
    assert same == (name not in DRAWN)


@pytest.mark.parametrize(("defense", "randomness"), [("unknown", "unknown"), ("known", "unknown"), ("known", "known")])
@pytest.mark.parametrize("name", DEFENSES)
def test_no_more_is_told_than_the_threat_model_grants(name: str, defense: str, randomness: str) -> None:
    client = FedSGD(DEFENSES[name][1](), defense=DEFENSES[name][0], threat_model=granted(defense, randomness))
    observation = client(batch_of(2, DEFENSES[name][2]))
    assert observation.defense is (DEFENSES[name][0] if defense == "known" else None)
    assert (observation.randomness is None) == (randomness == "unknown")
    for value in (observation.randomness or {}).values():
        assert len(value) == 2


@pytest.mark.parametrize("name", DEFENSES)
def test_a_selection_of_rows_is_assumed_alike(name: str) -> None:
    """What the hypothesis says of a row does not depend on the rows beside it."""
    observation, batch = observe(name, 3, randomness="known")
    whole, part = Density().hypothesis(observation), Density().hypothesis(observation.select([2]))
    values = [
        each.likelihood(
            each.observation.simulate(batch.images[rows], batch.labels[rows], **each.known), each.observation.update
        )
        for each, rows in ((whole, [0, 1, 2]), (part, [2]))
    ]
    torch.testing.assert_close(values[0][2:], values[1], rtol=1e-7, atol=1e-12)


# What is refused, in one line, before anything is computed.

NOISE, PRUNING = GaussianNoise(sigma=0.1), RandomPruning(pruned=0.5)
SETTINGS: dict[str, Callable[[], object]] = {
    "sigma is -1": lambda: GaussianNoise(sigma=-1),
    "sigma is nan": lambda: GaussianNoise(sigma=nan),
    "scale is -0.5": lambda: LaplaceNoise(scale=-0.5),
    "scale is nan": lambda: LaplaceNoise(scale=nan),
    "pruned is 1; prune": lambda: RandomPruning(pruned=1),
    "pruned is -0.1; prune": lambda: RandomPruning(pruned=-0.1),
    "pruned is nan; prune": lambda: RandomPruning(pruned=nan),
    "noise is 'gaussian', scale 0.0": lambda: RandomPruning(pruned=0.5, noise="gaussian"),
    "noise is None, scale 0.1": lambda: RandomPruning(pruned=0.5, scale=0.1),
    "noise is None, scale -1.0": lambda: RandomPruning(pruned=0.5, scale=-1.0),
    "noise is None, scale nan": lambda: RandomPruning(pruned=0.5, scale=nan),
    "noise is 'uniform'": lambda: RandomPruning(pruned=0.5, noise="uniform", scale=0.1),  # type: ignore[arg-type]
    "pruned is 1.0": lambda: MagnitudePruning(pruned=1.0),
    "pruned is inf": lambda: MagnitudePruning(pruned=inf),
    "scope is 'layer'": lambda: MagnitudePruning(pruned=0.5, scope="layer"),  # type: ignore[arg-type]
    "bits is 1; quantize to 2 or more": lambda: Quantization(bits=1),
    "rounding is 'up'": lambda: Quantization(bits=4, rounding="up"),  # type: ignore[arg-type]
    "sum of GaussianNoise(sigma=0.1) over clients": lambda: SecureAggregation(
        FedSGD(small_victim(), defense=NOISE), clients=2
    ),
    "the victim has none": lambda: FedSGD(without_linear(), defense=Soteria(pruned=0.1)),
    "no nn.Linear 'network.9'": lambda: FedSGD(mlp(width=4), defense=Soteria(pruned=0.1, layer="network.9")),
    "no variational bottleneck": lambda: FedSGD(mlp(width=4), defense=Precode()),
}
THREATS: dict[str, Callable[[], object]] = {
    "set threat_model.defense to 'known' or 'unknown'": lambda: FedSGD(
        small_victim(), defense=NOISE, threat_model=granted("none")
    ),
    "this client has no defense": lambda: FedSGD(small_victim(), threat_model=granted("known")),
    "knows what a defense drew knows the defense": lambda: FedSGD(
        small_victim(), defense=NOISE, threat_model=granted("unknown", "known")
    ),
    "GradientMatching needs threat_model.defense to be 'none' or 'known'": lambda: GradientInversion(
        FedSGD(small_victim(), defense=NOISE, threat_model=granted("unknown")), bayes_optimal()
    ),
    "given the density of GaussianNoise(sigma=0.1), the client's defense is RandomPruning(": lambda: mismatched(
        FedSGD(small_victim(), defense=PRUNING)
    ),
    "given the density of GaussianNoise(sigma=0.1), the client's defense is GaussianNoise(sigma=0.2)": lambda: (
        mismatched(FedSGD(small_victim(), defense=GaussianNoise(sigma=0.2)))
    ),
    "given the density of GaussianNoise(sigma=0.1), the client's defense is none": lambda: mismatched(
        FedSGD(small_victim())
    ),
}


def without_linear() -> Victim:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 10, 8), torch.nn.Flatten())
    return Victim(network, architecture="conv", image_shape=SMALL, num_classes=10, initialization="default")


def mismatched(client: FedSGD) -> object:
    return bayes_optimal(likelihood=Density(assumed=NOISE), steps=3, ramp_steps=1)(client(batch_of(1, 1)))


@pytest.mark.parametrize("words", [*SETTINGS, *THREATS])
def test_errors_are_one_line_that_names_the_cause(words: str) -> None:
    kind: type[GibenchError] = ConfigurationError if words in SETTINGS else ThreatModelError
    with pytest.raises(kind) as error:
        {**SETTINGS, **THREATS}[words]()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_defense_that_is_assumed_need_not_be_told() -> None:
    """And it is the same attack as that of somebody who is told."""
    found = []
    for known, assumed in (("unknown", NOISE), ("known", NOISE), ("known", None)):
        client = FedSGD(small_victim(), defense=GaussianNoise(sigma=0.1), threat_model=granted(known))
        attack = bayes_optimal(likelihood=Density(assumed=assumed), steps=3, ramp_steps=1)
        attack.check(client.threat_model)
        found.append(attack(client(batch_of(2, 1))).images)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
