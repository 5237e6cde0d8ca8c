"""Where a search sets out from the answer of another: initial attacks, and continuation over softened victims."""

import copy
import logging
from typing import Any

import pytest
import torch
from helpers import SmallData, batch_of, fully_connected, leaky_chain, small_victim

from gibench.attacks import Attack, Continuation, GradientMatching, LabelInference, inverting_gradients, second_order
from gibench.clients import FedAvg, FedSGD
from gibench.engine.gradient import LocalGradient
from gibench.errors import ConfigurationError, RefusalError, ThreatModelError
from gibench.labels import ILRG, Given
from gibench.likelihoods import Gaussian
from gibench.needs import Needs
from gibench.progress import Step, watching
from gibench.search import Adam, Pixels, PrincipalComponents
from gibench.types import Observation, Reconstruction, ThreatModel

BATCH = batch_of(3, 2).to(torch.float64)


def observe(victim: Any = small_victim, **known: Any) -> Observation:
    threat_model = ThreatModel(**{"victim": "initial", "batch_norm": "absent", **known})
    return FedSGD(victim(), threat_model=threat_model).double()(BATCH)


class Told(Attack):
    """Answers the private images, but for one update that is lost; 7 evaluations each."""

    def __init__(self, lost: int | None = None) -> None:
        super().__init__()
        self.lost = lost

    def forward(self, observation: Observation) -> Reconstruction:
        images = BATCH.images.clone()
        if self.lost is not None:
            images[self.lost, 1] = torch.nan
        nothing = torch.zeros(3, dtype=torch.float64)
        return Reconstruction(
            images=images, labels=None, objective=nothing, gradient_evaluations=7 * torch.ones(3).long()
        )


def still(initial: Attack | None, *, restarts: int = 1, **options: Any) -> GradientMatching:
    """Answers where it starts."""
    return GradientMatching(
        likelihood=Gaussian(sigma=1.0),
        search=Adam(steps=1, rate=0.1),
        labels=Given(),
        initial=initial,
        restarts=restarts,
        **options,
    )


def test_the_first_restart_sets_out_from_the_initial_answer_and_the_others_do_not() -> None:
    observation = observe()
    cold, warm = still(None, restarts=3)(observation), still(Told(), restarts=3)(observation)
    assert cold.candidates is not None
    assert warm.candidates is not None
    torch.testing.assert_close(warm.candidates[0], BATCH.images, rtol=0, atol=1e-12)
    assert torch.equal(warm.candidates[1:], cold.candidates[1:])
    torch.testing.assert_close(warm.images, BATCH.images, rtol=0, atol=1e-12)
    assert torch.equal(warm.gradient_evaluations, cold.gradient_evaluations + 7)
    assert warm.remarks is None


def test_an_update_without_an_initial_answer_starts_as_usual_and_says_so() -> None:
    observation = observe()
    cold, warm = still(None)(observation), still(Told(lost=1))(observation)
    assert torch.equal(warm.images[1], cold.images[1])
    torch.testing.assert_close(warm.images[[0, 2]], BATCH.images[[0, 2]], rtol=0, atol=1e-12)
    assert warm.remarks == (None, "the initial attack has no answer, so it started without", None)


def test_another_representation_starts_as_near_as_it_can_come() -> None:
    pixels = PrincipalComponents(auxiliary=SmallData(), components=20)
    observation = observe(prior_data="in_distribution")
    found = still(Told(), pixels=pixels)(observation)
    victim = small_victim().double()
    expected = pixels.decode(pixels.encode(BATCH.images, victim), victim).clamp(0, 1)
    torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-12)


def test_to_go_on_is_to_start_there() -> None:
    observation = observe()
    attack = second_order(steps=2)
    told = Told()(observation).model_copy(update={"images": BATCH.images * 0.9 + 0.05})
    before = attack(observation)
    found = attack.onward(observation, told)
    assert not torch.equal(found.images, before.images)
    assert (found.objective < before.objective).all()
    assert torch.equal(attack(observation).images, before.images)  # it does not stick


def test_needs_are_those_of_both() -> None:
    initial = Told()
    initial.needs = Needs(defense=("known",))
    with pytest.raises(ThreatModelError, match=r"threat_model\.defense"):
        still(initial)(observe())


def test_labels_alone_are_nothing_to_start_from() -> None:
    with pytest.raises(ConfigurationError, match="the initial attack answers labels alone"):
        still(LabelInference(labels=ILRG()))(observe())
    few = Told()(observe())
    few = few.model_copy(update={"images": few.images[:, :1]})
    with pytest.raises(ConfigurationError, match=r"answers images \(3, 1, 3, 8, 8\), where images \(3, 2, 3, 8, 8\)"):
        still(None).onward(observe(), few)


def test_only_the_search_itself_is_watched() -> None:
    seen: list[Step] = []
    attack = second_order(steps=2)
    attack.initial = inverting_gradients(steps=5)
    with watching(seen.append):
        attack(observe())
    assert [(step.done, step.total) for step in seen] == [(1, 2), (2, 2)]


def test_a_search_of_a_victim_with_kinks_says_what_to_expect_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "gibench")
    observation = observe(fully_connected)
    second_order(steps=1)(observation)
    second_order(steps=2)(observation)
    (warning,) = [record.message for record in caplog.records if "is not smooth" in record.message]
    assert "(network.2 (relu))" in warning
    assert "\n" not in warning
    caplog.clear()
    second_order(steps=1)(observe())  # smooth
    inverting_gradients(steps=1)(observe(fully_connected))  # takes derivatives as they come
    Continuation(attack=second_order(steps=1), sharpness=(3.0,))(observe(fully_connected))
    assert not caplog.records


def test_each_softened_copy_starts_from_the_answer_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    observation = observe(leaky_chain)
    stages: list[tuple[str, Reconstruction | None, Reconstruction]] = []
    search = GradientMatching._attack

    def attack(self: GradientMatching, given: Observation, start: Reconstruction | None) -> Reconstruction:
        found = search(self, given, start)
        stages.append((given.victim.architecture, start, found))  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(GradientMatching, "_attack", attack)
    found = Continuation(attack=second_order(steps=2), sharpness=(2.0, 8.0))(observation)
    assert [name for name, _, _ in stages] == [
        "leaky chain, softened at 2",
        "leaky chain, softened at 8",
        "leaky chain",
    ]
    assert stages[0][1] is None
    assert stages[1][1] is stages[0][2]
    assert stages[2][1] is stages[1][2]
    assert found.images is stages[2][2].images
    evaluations = [stage.gradient_evaluations for _, _, stage in stages]
    assert (evaluations[0] > 0).all()
    assert (evaluations[1] > evaluations[0]).all()
    assert (evaluations[2] > evaluations[1]).all()


def test_of_a_smooth_victim_all_copies_are_the_victim_itself() -> None:
    observation = observe()
    found = Continuation(attack=second_order(steps=2), sharpness=(3.0,))(observation)
    attack = second_order(steps=2)
    assert torch.equal(found.images, attack.onward(observation, attack(observation)).images)


def test_the_copies_are_kept_for_the_same_victim_and_not_copied_with_the_attack() -> None:
    attack = Continuation(attack=inverting_gradients(steps=1), sharpness=(3.0,))
    client = FedSGD(leaky_chain()).double()
    first = attack._copies(client(BATCH))
    assert attack._copies(client(BATCH)) is first
    assert attack._copies(FedSGD(leaky_chain()).double()(BATCH)) is not first
    assert copy.deepcopy(attack)._softened is None
    assert isinstance(first[0], LocalGradient)


def test_weights_that_change_in_place_are_softened_anew() -> None:
    observation = observe(fully_connected)
    attack = Continuation(attack=still(None), sharpness=(1.0,))
    attack(observation)
    before = attack._softened
    with torch.no_grad():
        next(observation.victim.parameters()).mul_(2.0)
    attack(observation)
    assert attack._softened is not before


def test_what_the_copies_ran_into_is_kept() -> None:
    observation = observe(fully_connected)
    searches = Continuation(attack=second_order(steps=1), sharpness=(1.0, 3.0))
    remarks = searches(observation).remarks
    assert remarks is not None
    words = "still moving after 1 steps"
    assert remarks[0] == f"sharpness 1: {words}; sharpness 3: {words}; {words}"


def test_continuation_starts_from_an_initial_attack() -> None:
    observation = observe(leaky_chain)
    attack = Continuation(attack=still(Told()), sharpness=(3.0, 30.0))
    found = attack(observation)
    torch.testing.assert_close(found.images, BATCH.images, rtol=0, atol=1e-9)
    assert torch.equal(found.gradient_evaluations, 7 + still(None)(observation).gradient_evaluations * 3)


@pytest.mark.parametrize("sharpness", [(), (0.0, 1.0), (2.0, 1.0), (1.0, float("inf")), (1.0, float("nan"))])
def test_sharpness_that_does_not_rise_is_an_error(sharpness: tuple[float, ...]) -> None:
    with pytest.raises(ConfigurationError, match="sharpness is"):
        Continuation(attack=second_order(), sharpness=sharpness)


def test_several_local_steps_cannot_be_softened() -> None:
    threat_model = ThreatModel(victim="initial", batch_norm="absent", update="fedavg")
    client = FedAvg(leaky_chain(), steps=2, local_batch_size=1, rate=0.1, threat_model=threat_model).double()
    with pytest.raises(RefusalError, match="this client computes something else"):
        Continuation(attack=second_order(steps=1))(client(BATCH))


def test_images_of_one_label_that_start_gray_stay_equal_and_near_gray_they_do_not() -> None:
    batch = BATCH.model_copy(update={"labels": torch.zeros_like(BATCH.labels)})
    observation = FedSGD(small_victim()).double()(batch)

    def apart(start: Any) -> torch.Tensor:
        attack = GradientMatching(
            likelihood=Gaussian(sigma=1.0),
            search=Adam(steps=20, rate=0.1),
            labels=Given(),
            pixels=Pixels(start=start),
        )
        images = attack(observation).images
        return (images[:, 0] - images[:, 1]).flatten(1).norm(dim=1)

    assert (apart("gray") < 1e-6).all()
    assert (apart("near_gray") > 0.1).all()
