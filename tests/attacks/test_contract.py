"""Every attack keeps one contract: shapes, range, nothing touched, same seed same answer, rows independent."""

import copy
from collections.abc import Callable

import pytest
import torch
from helpers import batch_of, fully_connected, small_victim

from gibench.attacks import Attack, BiasAttack, WrongUpdate, dlg, idlg, inverting_gradients, prior_alone
from gibench.clients import FedSGD
from gibench.types import Observation
from gibench.victims import Victim

ATTACKS: dict[str, tuple[Callable[[], Attack], Callable[[], Victim], int]] = {
    "bias": (BiasAttack, fully_connected, 1),
    "bias, B = 2": (BiasAttack, fully_connected, 2),
    "dlg": (lambda: dlg(steps=3), small_victim, 1),
    "dlg, B = 2, restarts": (lambda: dlg(steps=2, restarts=2), small_victim, 2),
    "idlg": (lambda: idlg(steps=3), small_victim, 1),
    "ig": (lambda: inverting_gradients(steps=20), small_victim, 1),
    "ig, unsigned, B = 2, restarts": (lambda: inverting_gradients(steps=15, signed=False, restarts=3), small_victim, 2),
    "ig, prior alone": (lambda: prior_alone(inverting_gradients(steps=10)), small_victim, 1),
}


def observe(name: str, updates: int) -> tuple[Attack, Observation]:
    build, victim, size = ATTACKS[name]
    client = FedSGD(victim()).double()
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
        assert alone.gradient_evaluations[0] == together.gradient_evaluations[row]


@pytest.mark.parametrize("name", ATTACKS)
def test_poisoning_the_truth_changes_nothing(name: str) -> None:
    """R1: after the observation is made, the private images may become anything."""
    build, victim, size = ATTACKS[name]
    reconstructions = []
    for poison in (False, True):
        batch = batch_of(2, size)
        observation = FedSGD(victim())(batch)
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
    small.memory_gib = attack.memory_gib * 1.5 / attack.rows_at_once(observation)  # type: ignore[operator]
    assert small.rows_at_once(observation) == 1  # type: ignore[operator]
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


def test_the_wrong_update_control_attacks_the_next_client() -> None:
    attack, observation = observe("ig", 3)
    control = WrongUpdate(attack)(observation)
    torch.testing.assert_close(control.images, attack(observation).images[[1, 2, 0]])
