"""Every attack keeps one contract: shapes, range, nothing touched, same seed same answer, rows independent."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import SmallData, SmallGenerator, batch_of, fully_connected, leaky_chain, small_victim

from gibench.attacks import (
    RGAP,
    SPEAR,
    Attack,
    BiasAttack,
    Continuation,
    GradientMatching,
    LabelInference,
    WrongUpdate,
    bayes_optimal,
    dlg,
    ggl,
    gias,
    gifd,
    gradinversion,
    idlg,
    inverting_gradients,
    inverting_gradients_legacy,
    inverting_gradients_modern,
    prior_alone,
    second_order,
)
from gibench.clients import Client, FedAvg, FedSGD, SecureAggregation
from gibench.engine import Engine
from gibench.labels import BiasCorrected, Given
from gibench.likelihoods import Cosine, Gaussian, Partial
from gibench.priors import ProbabilisticPCA
from gibench.search import Adam, Ball, Latent, LevenbergMarquardt, Pixels, PrincipalComponents
from gibench.types import Observation, ThreatModel
from gibench.victims import Victim

# The small victims leave many directions without a trace: damped little, these amplify the rounding of a batch.
DAMPED = LevenbergMarquardt(steps=3, damping=1.0, single=False)

ATTACKS: dict[str, tuple[Callable[[], Attack], Callable[[], Victim], int]] = {
    "bias": (BiasAttack, fully_connected, 1),
    "bias, B = 2": (BiasAttack, fully_connected, 2),
    "spear": (SPEAR, fully_connected, 1),
    "spear, B = 2": (SPEAR, fully_connected, 2),
    "dlg": (lambda: dlg(steps=3), small_victim, 1),
    "dlg, B = 2, restarts": (lambda: dlg(steps=2, restarts=2), small_victim, 2),
    "idlg": (lambda: idlg(steps=3), small_victim, 1),
    "gradinversion, B = 2, restarts": (
        lambda: gradinversion(
            steps=12, warm_up=2, batch_norm=None, group_start=4, group_refresh=3, registration="translation", restarts=3
        ),
        small_victim,
        2,
    ),
    "ig": (lambda: inverting_gradients(steps=20), small_victim, 1),
    "ig, unsigned, B = 2, restarts": (lambda: inverting_gradients(steps=15, signed=False, restarts=3), small_victim, 2),
    "ig, modern, B = 2, restarts": (
        lambda: inverting_gradients_modern(steps=12, warm_up=3, restarts=2),
        small_victim,
        2,
    ),
    "ig, legacy": (lambda: inverting_gradients_legacy(steps=12), small_victim, 1),
    "ig, soft and noisy": (
        lambda: GradientMatching(
            likelihood=Partial(Cosine(), top=2, weights="linear"),
            search=Adam(steps=12, signed="soft", schedule="cosine", noise=0.2),
            labels=Given(),
        ),
        small_victim,
        1,
    ),
    "r-gap": (RGAP, leaky_chain, 1),
    "bayes": (lambda: bayes_optimal(steps=6, ramp_steps=3), small_victim, 1),
    "bayes, ball, B = 2, restarts": (
        lambda: bayes_optimal(steps=5, ramp_steps=2, restarts=2, ball=Ball(radius=1.0, samples=2)),
        small_victim,
        2,
    ),
    "second order": (lambda: second_order(search=DAMPED), small_victim, 1),
    "second order, B = 2, restarts": (lambda: second_order(steps=2, start="near_gray", restarts=2), small_victim, 2),
    "second order from ig, restarts": (
        lambda: GradientMatching(
            likelihood=Gaussian(sigma=1.0),
            search=LevenbergMarquardt(steps=2),
            labels=Given(),
            initial=inverting_gradients(steps=3),
            restarts=2,
        ),
        small_victim,
        1,
    ),
    "second order, principal components, B = 2": (
        lambda: GradientMatching(
            likelihood=Gaussian(sigma=1.0),
            priors=[ProbabilisticPCA(auxiliary=SmallData(), components=12, weight=1e-6)],
            search=LevenbergMarquardt(steps=3),
            labels=Given(),
            pixels=PrincipalComponents(auxiliary=SmallData(), components=12),
        ),
        small_victim,
        2,
    ),
    "gias, B = 2, restarts": (
        lambda: gias(generator=SmallGenerator(), latent_steps=6, weight_steps=4, restarts=2),
        small_victim,
        2,
    ),
    "gias of a class, B = 2": (
        lambda: gias(generator=SmallGenerator(num_classes=10), latent_steps=4, weight_steps=3, restarts=1),
        small_victim,
        2,
    ),
    "gifd, B = 2, restarts": (lambda: gifd(generator=SmallGenerator(), steps=5, restarts=2), small_victim, 2),
    "ggl, restarts": (lambda: ggl(generator=SmallGenerator(), steps=3, population=5, restarts=2), small_victim, 1),
    "second order, latent, B = 2": (
        lambda: GradientMatching(
            likelihood=Gaussian(sigma=1.0),
            search=LevenbergMarquardt(steps=3),
            labels=Given(),
            pixels=Latent(generator=SmallGenerator(), weight=1e-3),
        ),
        small_victim,
        2,
    ),
    "continuation": (
        lambda: Continuation(attack=inverting_gradients(steps=4, signed=False), sharpness=(2.0, 8.0)),
        leaky_chain,
        1,
    ),
    "labels, B = 3": (lambda: LabelInference(labels=BiasCorrected()), small_victim, 3),
    "ig, prior alone": (lambda: prior_alone(inverting_gradients(steps=10)), small_victim, 1),
}


GRANTED = ThreatModel(victim="initial", batch_norm="absent", prior_data="in_distribution")


def observe(name: str, updates: int) -> tuple[Attack, Observation]:
    build, victim, size = ATTACKS[name]
    client = FedSGD(victim(), threat_model=GRANTED).double()
    return build(), client(batch_of(updates, size).to(torch.float64))


@pytest.mark.parametrize("name", ATTACKS)
def test_contract(name: str) -> None:
    attack, observation = observe(name, 3)
    victim = {key: tensor.clone() for key, tensor in observation.victim.state_dict().items()}
    update = {key: tensor.clone() for key, tensor in observation.update.items()}
    global_state = torch.get_rng_state()

    found = attack(observation)

    size = ATTACKS[name][2]
    assert found.images.shape == (3, size, *observation.image_shape)
    assert found.images.isfinite().all()
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.objective.shape == (3,)
    assert found.gradient_evaluations.shape == (3,)
    assert found.labels is None or (found.labels.shape == (3, size) and found.labels.dtype == torch.int64)
    assert not found.images.requires_grad
    assert all(torch.equal(victim[key], tensor) for key, tensor in observation.victim.state_dict().items())
    assert all(torch.equal(update[key], tensor) for key, tensor in observation.update.items())
    assert torch.equal(global_state, torch.get_rng_state())

    again = attack(observation)
    assert torch.equal(found.images, again.images)
    assert torch.equal(found.gradient_evaluations, again.gradient_evaluations)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacking_together_is_attacking_alone(name: str) -> None:
    attack, observation = observe(name, 3)
    together = attack(observation)
    for row in (2, 0):
        alone = attack(observation.select([row]))
        torch.testing.assert_close(alone.images[0], together.images[row], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(alone.objective[0], together.objective[row], rtol=1e-6, atol=1e-8)
        counts = alone.gradient_evaluations[0], together.gradient_evaluations[row]
        slack = 4 if name.startswith("second order") else 0  # rounding may decide when an inner solution is good enough
        assert abs(int(counts[0] - counts[1])) <= slack


@pytest.mark.parametrize("name", ATTACKS)
def test_poisoning_the_truth_changes_nothing(name: str) -> None:
    """R1: after the observation is made, the private images may become anything."""
    build, victim, size = ATTACKS[name]
    reconstructions = []
    for poison in (False, True):
        batch = batch_of(2, size)
        observation = FedSGD(victim(), threat_model=GRANTED)(batch)
        if poison:
            batch.images.fill_(0.123)
            batch.labels.fill_(7)
        reconstructions.append(build()(observation))
    assert reconstructions[0].images.numpy().tobytes() == reconstructions[1].images.numpy().tobytes()


@pytest.mark.parametrize("name", ["dlg", "ig"])
def test_a_smaller_memory_budget_changes_nothing(name: str) -> None:
    attack, observation = observe(name, 4)
    whole = attack(observation)
    small = copy.deepcopy(attack)
    small.engine = Engine(memory_gib=4.0 * 1.5 / attack.rows_at_once(observation, attack.prepare(observation)))  # type: ignore[operator, assignment]
    assert small.rows_at_once(observation, small.prepare(observation)) == 1  # type: ignore[operator]
    torch.testing.assert_close(small(observation).images, whole.images, rtol=1e-6, atol=1e-6)


def test_restarts_are_chosen_by_the_likelihood_and_all_returned() -> None:
    attack, observation = observe("ig, unsigned, B = 2, restarts", 3)
    found = attack(observation)
    assert found.candidates is not None
    assert found.candidates.shape == (3, 3, 2, *observation.image_shape)
    chosen = (found.candidates == found.images).flatten(2).all(2)
    assert (chosen.sum(0) >= 1).all()
    single, _ = observe("ig, unsigned, B = 2, restarts", 1)
    single.restarts = 1  # type: ignore[assignment]
    first = single(observation)
    assert (found.objective <= first.objective + 1e-12).all()
    torch.testing.assert_close(first.images, found.candidates[0], rtol=1e-6, atol=1e-6)


def failing_starts(rows: list[int]) -> Callable[..., torch.Tensor]:
    """Pixels.start, with the given rows lost from the first iterate on."""
    original = Pixels.start

    def start(*arguments: Any) -> torch.Tensor:
        images = original(*arguments)
        images[rows] = torch.nan
        return images

    return start


@pytest.mark.parametrize("name", ["dlg, B = 2, restarts", "ig, unsigned, B = 2, restarts"])
def test_a_lost_row_touches_no_other_and_is_chosen_last(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Update 0 loses its first restart, update 1 all of them, update 2 none."""
    attack, observation = observe(name, 3)
    restarts = attack.restarts
    whole = attack(observation)
    monkeypatch.setattr(Pixels, "start", failing_starts([0, *range(restarts, 2 * restarts)]))
    found = attack(observation)
    assert whole.candidates is not None
    assert found.candidates is not None
    assert found.candidates[0, 0].isnan().all()
    torch.testing.assert_close(found.candidates[1:, 0], whole.candidates[1:, 0], rtol=1e-6, atol=1e-6)
    assert found.images[0].isfinite().all()
    assert found.images[1].isnan().all()
    assert found.objective[1].isinf()
    torch.testing.assert_close(found.images[2], whole.images[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("local_steps", ["known", "unknown"])
@pytest.mark.parametrize("aggregated", [False, True])
def test_several_local_steps_can_be_attacked(aggregated: bool, local_steps: str) -> None:
    """The search gets on, and the private images explain the update: exactly, or nearly where steps are hidden."""
    known = ThreatModel(victim="initial", batch_norm="absent", update="fedavg", local_steps=local_steps)  # type: ignore[arg-type]
    client: Client = FedAvg(small_victim(), steps=2, local_batch_size=2, rate=0.01, threat_model=known)
    client = SecureAggregation(client, clients=2) if aggregated else client
    batch = batch_of(2, 4).to(torch.float64)
    observation = client.double()(batch)
    few, many = (inverting_gradients(steps=steps, signed=False)(observation) for steps in (1, 60))
    assert (many.objective < 0.5 * few.objective).all()
    at_truth = Cosine()(observation.simulate(batch.images, batch.labels), observation.update)
    assert (at_truth < 1e-2 if local_steps == "unknown" else at_truth.abs() < 1e-12).all()


def test_the_wrong_update_control_attacks_the_next_client() -> None:
    attack, observation = observe("ig", 3)
    control = WrongUpdate(attack)(observation)
    torch.testing.assert_close(control.images, attack(observation).images[[1, 2, 0]])
