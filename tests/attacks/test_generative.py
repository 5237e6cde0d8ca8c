"""GIAS against one image and restart after the other, GIFD's choice of stage, GGL against the package alone."""

from typing import Any

import numpy as np
import pytest
import torch
from cmaes import CMA
from helpers import SmallGenerator, batch_of, small_victim
from references import gias as reference

from gibench.attacks import GradientMatching, ggl, gias, gifd
from gibench.clients import FedSGD
from gibench.engine import Engine
from gibench.errors import ConfigurationError
from gibench.labels import BiasSign
from gibench.progress import Step, watching
from gibench.search import CMAES, Latent
from gibench.seeding import derive, normal_rows
from gibench.types import Observation, ThreatModel

KNOWN = ThreatModel(victim="initial", batch_norm="absent")


def observe(updates: int, size: int) -> Observation:
    return FedSGD(small_victim(), threat_model=KNOWN).double()(batch_of(updates, size).to(torch.float64))


@pytest.mark.parametrize("make", [gias, gifd])
def test_a_small_budget_searches_in_parts_and_finds_the_same(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    observation, made = observe(3, 1), SmallGenerator().double()
    steps = {"latent_steps": 4, "weight_steps": 4} if make is gias else {"steps": 4}

    def attack(**budget: float) -> GradientMatching:
        engine = Engine(backend="generic", compile="off", **budget)
        built: GradientMatching = make(generator=made, restarts=2, engine=engine, **steps)
        return built

    whole = attack()(observation)
    prepared = attack().prepare(observation)
    rows = []
    real = GradientMatching.rows_at_once
    monkeypatch.setattr(GradientMatching, "rows_at_once", lambda *given: rows.append(real(*given)) or rows[-1])
    found = attack(memory_gib=2.5 * prepared.row_bytes / 2**30)(observation)
    assert rows
    assert set(rows) == {2}
    torch.testing.assert_close(found.images, whole.images, rtol=0, atol=1e-9)
    assert torch.equal(found.gradient_evaluations, whole.gradient_evaluations)


@pytest.mark.parametrize("size", [1, 2])
def test_gias_is_gias_one_restart_after_the_other(size: int) -> None:
    observation, made = observe(2, size), SmallGenerator().double()
    attack = gias(
        generator=made, latent_steps=12, latent_rate=0.05, weight_steps=9, weight_rate=0.01, tv=0.0, restarts=2
    )
    found = attack(observation)
    assert found.candidates is not None
    assert observation.labels is not None
    costs = torch.zeros(2, 2, dtype=torch.float64)
    for update in range(2):
        observed = {name: value[update] for name, value in observation.update.items()}
        for restart in range(2):
            seed = derive(observation.seeds[update], "restart", restart)
            latent = normal_rows((size, 6), [seed], "latent").double()[0]
            images, cost, steps = reference.attack(
                made,
                latent,
                observation.labels[update],
                observation.victim,  # type: ignore[arg-type]
                observed,
                steps=(12, 9),
                rates=(0.05, 0.01),
            )
            torch.testing.assert_close(found.candidates[restart, update], images, rtol=0, atol=1e-6)
            costs[restart, update] = cost
    torch.testing.assert_close(found.objective, costs.min(0).values, rtol=1e-6, atol=1e-9)
    assert found.gradient_evaluations.tolist() == [2 * steps] * 2


def test_gifd_answers_with_the_stage_and_restart_that_match_best() -> None:
    observation, made = observe(3, 1), SmallGenerator()
    objectives = []
    for stages in ([], [1], [1, 2]):
        found = gifd(generator=made.double(), steps=8, restarts=2, stages=stages, tv=0.0, l2=0.0)(observation)
        objectives.append(found.objective)
        assert found.gradient_evaluations.tolist() == [2 * 8 * (1 + len(stages))] * 3
        victim_update = observation.simulate(found.images, observation.labels)
        inner = sum((victim_update[name] * value).flatten(1).sum(1) for name, value in observation.update.items())
        norms = [
            sum(value.flatten(1).square().sum(1) for value in update.values()).sqrt()  # type: ignore[union-attr]
            for update in (victim_update, observation.update)
        ]
        torch.testing.assert_close(found.objective, 1 - inner / (norms[0] * norms[1]), rtol=1e-6, atol=1e-9)
    assert (objectives[1] <= objectives[0]).all()
    assert (objectives[2] <= objectives[1]).all()
    assert (objectives[2] < objectives[0]).any()


def test_the_steps_of_all_stages_are_counted_as_one_search() -> None:
    seen: list[tuple[int, int]] = []

    def watch(step: Step) -> None:
        seen.append((step.done, step.total))
        assert step.images().shape == (2, 1, 3, 8, 8)

    with watching(watch):
        gifd(generator=SmallGenerator().double(), steps=4, restarts=1)(observe(2, 1))
    assert seen == [(done, 12) for done in range(1, 13)]


def test_ggl_is_the_package_on_each_update() -> None:
    observation, made = observe(2, 1), SmallGenerator().double()
    attack = ggl(generator=made, steps=4, population=6, latent_weight=0.1)
    found = attack(observation)
    assert found.gradient_evaluations.tolist() == [24, 24]
    for update in range(2):
        seed = derive(observation.seeds[update], "restart", 0)
        start = normal_rows((1, 6), [seed], "latent").double()[0, 0]
        search = CMA(mean=start.numpy(), sigma=1.0, seed=seed % 2**32, population_size=6)
        least, image = np.inf, torch.zeros(3, 8, 8)
        for _ in range(4):
            told = []
            for _ in range(6):
                point = search.ask()
                images = made(torch.from_numpy(point)[None])
                simulated = observation.select([update]).simulate(images[None], observation.labels[update][None])  # type: ignore[index]
                distance = sum(
                    (simulated[name][0] - observation.update[name][update]).square().sum() for name in simulated
                )
                value = float(distance / 2 + 0.05 * (point**2).sum())
                told.append((point, value))
                if value < least:
                    least, image = value, images[0]
            search.tell(told)
        torch.testing.assert_close(found.images[update, 0], image, rtol=0, atol=1e-9)


def test_labels_may_be_inferred() -> None:
    observation = observe(3, 1).model_copy(update={"labels": None})
    found = gias(generator=SmallGenerator(num_classes=10).double(), latent_steps=3, weight_steps=2, labels=BiasSign())(
        observation
    )
    assert found.labels is not None
    assert found.labels.flatten().tolist() == batch_of(3, 1).labels.flatten().tolist()


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigurationError, match="CMA-ES needs steps >= 1"):
        CMAES(steps=0)
    with pytest.raises(ConfigurationError, match="weight_steps is -1"):
        gias(generator=SmallGenerator(), weight_steps=-1)
    assert Latent(generator=SmallGenerator()).numbers((3, 8, 8)) == 6
