"""BatchNorm statistics: against plain hooks, in every regime, and with the errors of the others."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from helpers import batch_of, small_victim
from references import priors as slow
from torch import Tensor, nn

from gibench.attacks import GradientMatching, inverting_gradients
from gibench.clients import FedSGD
from gibench.engine import Engine
from gibench.engine.graph import Traced
from gibench.errors import RefusalError, ThreatModelError
from gibench.labels import Given
from gibench.likelihoods import Cosine
from gibench.priors import BatchNormStatistics
from gibench.priors.batch_norm_statistics import Statistics
from gibench.search import Adam
from gibench.types import Observation, ThreatModel
from gibench.victims import Victim, resnet20

REGIMES: list[tuple[Statistics, str]] = [
    ("running", "eval"),
    ("exact", "shared"),
    ("proxy", "private"),
    ("proxy", "shared"),
]


def victim() -> Victim:
    """Three BatchNorm layers whose running statistics and weights are not trivial."""

    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    torch.manual_seed(0)
    layers = [layer for sizes in pairwise((3, 4, 5, 6)) for layer in block(*sizes)]
    facts = {"architecture": "three", "image_shape": (3, 8, 8), "num_classes": 10, "initialization": "random"}
    built = Victim(nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 10)), mean=(0.4,), std=(0.3,), **facts)  # type: ignore[arg-type]
    with torch.no_grad():
        for tensor in built.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand_like(tensor))
    return built


def observe(built: Victim, regime: str, updates: int = 3, size: int = 2) -> Observation:
    known = ThreatModel.model_validate({"victim": "initial", "batch_norm": regime})
    return FedSGD(built, threat_model=known).double()(batch_of(updates, size).to(torch.float64))


def attack(statistics: Statistics, **settings: object) -> GradientMatching:
    return GradientMatching(
        likelihood=Cosine(),
        priors=[BatchNormStatistics(weight=1.0, statistics=statistics)],
        search=Adam(steps=2),
        labels=Given(),
        **settings,  # type: ignore[arg-type]
    )


def known(statistics: str, observation: Observation, original: Victim, update: int) -> list[Tensor]:
    layers = [(name, layer) for name, layer in original.double().named_modules() if isinstance(layer, nn.BatchNorm2d)]
    if statistics == "exact":
        assert observation.batch_statistics is not None
        return [observation.batch_statistics[name][update] for name, _ in layers]
    return [torch.stack([layer.running_mean, layer.running_var]) for _, layer in layers]  # type: ignore[list-item]


@pytest.mark.parametrize(("statistics", "regime"), REGIMES)
def test_value_and_derivative_are_those_of_hooks_on_one_batch_at_a_time(statistics: Statistics, regime: str) -> None:
    original = victim()
    observation = observe(original, regime)
    images = torch.rand(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images.requires_grad_()
    prior = BatchNormStatistics(weight=0.7, statistics=statistics, first=3.0)
    found = prior(images, observation)
    rows = []
    for update in range(3):
        layers = known(statistics, observation, original, update)
        rows.append(0.7 * slow.batch_norm_term(observation.victim, images[update], layers, 3.0))  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-10, atol=0)
    coefficients = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    derivatives = [torch.autograd.grad((coefficients * each).sum(), images)[0] for each in (found, torch.stack(rows))]
    torch.testing.assert_close(*derivatives, rtol=1e-9, atol=1e-12)
    assert not any(layer._forward_pre_hooks for layer in observation.victim.modules())


def test_the_first_layer_counts_ten_times() -> None:
    observation = observe(victim(), "eval")
    images = batch_of(3, 2, seed=1).images.double()
    once, ten, eleven = (BatchNormStatistics(weight=1.0, first=first)(images, observation) for first in (0, 10, 11))
    torch.testing.assert_close(ten - once, 10 * (eleven - ten))
    assert (eleven > ten).all()
    torch.testing.assert_close(BatchNormStatistics(weight=1.0)(images, observation), ten)


def test_private_images_have_their_own_statistics_and_no_other() -> None:
    batch = batch_of(3, 2).images.double()
    observation = observe(victim(), "shared")
    prior = BatchNormStatistics(weight=1.0, statistics="exact")
    assert prior(batch, observation).max() < 1e-10
    assert prior(batch.roll(1, 0), observation).min() > 0.1


@pytest.mark.parametrize(
    ("statistics", "regime"), [REGIMES[1], *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REGIMES[::2])]
)
def test_a_traced_evaluation_is_the_same(statistics: Statistics, regime: str) -> None:
    """With batch statistics as arguments, so that a graph compiled for one chunk serves the next."""
    observation = observe(small_victim(batch_norm=True), regime, updates=4)
    method = attack(statistics, engine=Engine(compile="off"))
    rows = method.posterior(observation).rows
    (first, start), (second, other) = (method.problem(observation, part) for part in (rows[:2], rows[2:]))
    traced = Traced(first.evaluate, start, first.known())
    evaluation, match = traced(other, second.known())
    expected, expected_match = second.evaluate(other, second.known())
    torch.testing.assert_close(evaluation.value, expected.value)
    torch.testing.assert_close(evaluation.gradient["pixels"], expected.gradient["pixels"])
    torch.testing.assert_close(match, expected_match)


@pytest.mark.parametrize(("statistics", "regime"), [("running", "private"), ("exact", "private"), ("proxy", "eval")])
def test_another_regime_is_named_before_any_compute(statistics: Statistics, regime: str) -> None:
    threat = ThreatModel.model_validate({"victim": "initial", "batch_norm": regime})
    with pytest.raises(ThreatModelError, match=r"needs threat_model\.batch_norm to be .*; it is"):
        attack(statistics).check(threat)


@pytest.mark.parametrize("statistics", ["running", "exact", "proxy"])
def test_a_victim_without_batch_norm_is_refused(statistics: Statistics, monkeypatch: pytest.MonkeyPatch) -> None:
    observation = FedSGD(small_victim())(batch_of(1, 1))
    monkeypatch.setattr(Engine, "prepare", lambda *_, **__: pytest.fail("refused too late"))
    with pytest.raises(RefusalError, match=r"no BatchNorm layers; leave BatchNormStatistics out"):
        attack(statistics)(observation)


def test_a_victim_that_keeps_no_statistics_has_no_proxy() -> None:
    bare = small_victim()
    bare.network.insert(1, nn.BatchNorm2d(4, track_running_stats=False))  # type: ignore[operator]
    with pytest.raises(RefusalError, match="keeps no running statistics"):
        attack("proxy")(observe(bare, "private"))


@pytest.mark.parametrize("build", [victim, resnet20])
def test_the_server_keeps_its_statistics_and_nothing_else_changes(build: Callable[[], Victim]) -> None:
    original = build()
    found = FedSGD(original, threat_model=ThreatModel(victim="initial", batch_norm="private")).victim
    assert isinstance(found, Victim)
    plain = [name for name in original.state_dict() if "running" not in name and "num_batches" not in name]
    assert list(found.state_dict()) == plain
    assert "server_mean" not in str(found.fingerprint())
    before, after = (dict(each.named_modules()) for each in (original, found))
    layers = [name for name, layer in before.items() if isinstance(layer, nn.BatchNorm2d)]
    assert layers
    for name in layers:
        assert after[name].running_mean is None
        assert torch.equal(after[name].server_mean, before[name].running_mean)  # type: ignore[arg-type]
        assert torch.equal(after[name].server_var, before[name].running_var)  # type: ignore[arg-type]


def test_the_pass_of_the_prior_is_in_the_memory_budget() -> None:
    observation = observe(victim(), "eval")
    with_prior = attack("running").prepare(observation).row_bytes
    without = inverting_gradients(steps=2, tv=0).prepare(observation).row_bytes
    outputs = 2 * (4 * 16 + 5 * 4 + 6) * 3 + 2 * (10 + 6)  # two images; convolution, BatchNorm, ReLU; head and flatten
    assert with_prior - without == outputs * 8 * 3
