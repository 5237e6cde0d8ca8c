"""GradInversion: its terms, its settings, and what it does to real images."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim
from torch import nn

from gibench.attacks import gradinversion
from gibench.clients import FedSGD
from gibench.data import CIFAR10
from gibench.engine import Engine
from gibench.errors import ConfigurationError, RefusalError, ThreatModelError
from gibench.labels import Given, GradInversionRule
from gibench.metrics import psnr
from gibench.priors import BatchNormStatistics, GroupConsistency, L2Norm, TotalVariation
from gibench.progress import Step, watching
from gibench.search import Adam
from gibench.types import Batch, Observation, Reconstruction, ThreatModel
from gibench.victims import Victim, seeded

OFF = Engine(compile="off", backend="generic")
SHORT = {"steps": 6, "warm_up": 2, "group_start": 2, "group_refresh": 2, "restarts": 2, "engine": OFF}


def observe(regime: str = "eval", batch: Batch | None = None, victim: Victim | None = None) -> Observation:
    known = ThreatModel.model_validate({"victim": "initial", "batch_norm": regime})
    batch = batch or batch_of(2, 2).to(torch.float64)
    victim = victim or small_victim(batch_norm=regime != "absent")
    return FedSGD(victim, threat_model=known).to(batch.images.dtype)(batch)  # type: ignore[no-any-return]


def test_the_objective_is_the_sum_of_its_terms() -> None:
    """By hand, at a start: half the squared distance, and each prior with its weight."""
    batch = batch_of(2, 2).to(torch.float64)
    observation = observe("shared", batch)
    method = gradinversion(**SHORT | {"group_start": 0}, batch_norm="exact", labels=Given())  # type: ignore[arg-type]
    objective, start = method.problem(observation, method.posterior(observation).rows)
    found = objective(start)
    images = objective.decode(start).images
    rows = observation.select([0, 0, 1, 1])
    assert rows.labels is not None
    simulated = observation.simulate(images, rows.labels)
    squares = sum((simulated[name] - rows.update[name]).square().flatten(1).sum(1) for name in simulated)
    group = GroupConsistency(weight=0.01, start=0)
    group.advance(images, rows)
    priors = [
        TotalVariation(weight=1e-4),
        L2Norm(weight=1e-6),
        BatchNormStatistics(weight=0.1, statistics="exact", first=10.0),
        group,
    ]
    expected = 1e-4 / 2 * squares + sum(prior(images, rows) for prior in priors)  # type: ignore[operator]
    torch.testing.assert_close(found.value, expected)
    assert all(prior(images, rows).min() > 0 for prior in priors)


def test_the_defaults_are_those_of_the_table() -> None:
    method = gradinversion()
    search = method.search
    assert isinstance(search, Adam)
    assert (search.steps, search.rate, search.warm_up, search.noise) == (20_000, 0.1, 50, 0.2)
    assert (search.schedule, search.signed) == ("cosine", False)
    assert method.pixels.box
    assert isinstance(method.labels, GradInversionRule)
    assert method.likelihood.sigma == pytest.approx(100)  # 1 / (2 sigma^2) = 1e-4 / 2
    assert [type(prior).__name__ for prior in method.priors] == [
        "TotalVariation",
        "L2Norm",
        "BatchNormStatistics",
        "GroupConsistency",
    ]
    none = gradinversion(tv=0, l2=0, batch_norm=None, group=0, restarts=1)
    assert not list(none.priors)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"restarts": 1}, "raise restarts, or leave it out"),
        ({"steps": 300}, "begins after 500 of 300 steps"),
        ({"gradient": 0.0}, "must be positive"),
        ({"gradient": -1.0}, "must be positive"),
        ({"batch_norm": "eval"}, "choose running, exact, proxy"),
        ({"tv": -1.0}, "total variation is -1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        gradinversion(**settings)


def test_the_statistics_fit_the_regime_or_it_says_so() -> None:
    with pytest.raises(ThreatModelError, match=r"threat_model\.batch_norm"):
        gradinversion(**SHORT)(observe("private"))  # type: ignore[arg-type]
    with pytest.raises(RefusalError, match="no BatchNorm layers; leave"):
        gradinversion(**SHORT)(observe("absent"))  # type: ignore[arg-type]
    assert gradinversion(**SHORT, batch_norm=None)(observe("absent")).images.isfinite().all()  # type: ignore[arg-type]


def test_labels_are_inferred_unless_they_are_given() -> None:
    observation = observe()
    inferred = gradinversion(**SHORT)(observation)  # type: ignore[arg-type]
    assert inferred.labels is not None
    assert torch.equal(inferred.labels, GradInversionRule()(observation))
    assert gradinversion(**SHORT, labels=Given())(observation).labels is None  # type: ignore[arg-type]


def test_images_that_share_an_inferred_order_are_averaged_by_it() -> None:
    """The labels that the prior sees are those that the attack goes by, whatever the threat model grants."""
    observation = observe()
    for labels in (GradInversionRule(), Given()):
        method = gradinversion(**SHORT, labels=labels)  # type: ignore[arg-type]
        objective, _ = method.problem(observation, method.posterior(observation).rows)
        assert objective.all.observation.labels is not None
        assert torch.equal(objective.all.observation.labels[::2], labels(observation))


def tiny() -> Victim:
    """A ReLU net of three BatchNorm layers, as narrow as a test can afford."""

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 12, 1), (12, 16, 2), (16, 16, 2)):
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))

    facts = {"architecture": "tiny", "image_shape": (3, 32, 32), "num_classes": 10, "initialization": "default, seed 0"}
    return Victim(seeded(build, 0), mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26), **facts)  # type: ignore[arg-type]


def cifar(root: Path, updates: int, size: int) -> Batch:
    data = CIFAR10(root, updates=updates, together=updates, batch_size=size)
    batch: Batch = next(iter(data.predict_dataloader()))
    return batch


def score(found: Reconstruction, batch: Batch) -> float:
    return float(psnr(found.images.flatten(0, 1), batch.images.flatten(0, 1)).mean())


def test_the_objective_falls_on_real_images(cifar10_root: Path) -> None:
    observation = observe("eval", cifar(cifar10_root, 2, 1), tiny())
    values: list[torch.Tensor] = []

    def keep(step: Step) -> None:
        values.append(step.objective.clone())

    with watching(keep):
        gradinversion(steps=40, warm_up=5, group=0.0, restarts=1, labels=Given(), engine=OFF)(observation)
    assert (values[-1] < 0.7 * values[0]).all()
    assert math.isfinite(float(values[-1].max()))


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_statistics_of_the_very_batch_leak_and_a_stand_in_misleads(cifar10_root: Path, size: int) -> None:
    """Same images, same start. Random weights: the server's statistics are 0 and 1, which no image has."""
    batch = cifar(cifar10_root, 2, size)
    observation = observe("shared", batch, tiny())
    settings = {"steps": 40, "warm_up": 5, "group": 0.0, "restarts": 1, "labels": Given(), "engine": OFF}
    without, exact, proxy = (
        score(gradinversion(batch_norm=statistics, **settings)(observation), batch)  # type: ignore[arg-type]
        for statistics in (None, "exact", "proxy")
    )
    assert exact > without + 1
    assert proxy < without - 1
