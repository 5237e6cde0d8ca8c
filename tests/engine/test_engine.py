"""What the engine chooses, what it refuses and says, and how long it keeps to a choice."""

import copy
import logging
from collections.abc import Callable

import pytest
import torch
from helpers import batch_of, small_victim
from torch import Tensor, nn

from gibench.attacks import dlg, inverting_gradients
from gibench.clients import FedAvg, FedSGD
from gibench.engine import Backend, Choice, Engine, LocalGradient, Prepared
from gibench.engine import choice as module
from gibench.engine.backends import RulesBackend
from gibench.engine.cost import Cost
from gibench.errors import BackendError, ConfigurationError
from gibench.likelihoods import Cosine, Flat, Gaussian, Likelihood
from gibench.types import Observation, Update
from gibench.victims import Victim, seeded


class Timer:
    """A trial that knows how long each back end takes, and keeps which were timed."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.timed: list[str] = []

    def __call__(self, backend: Backend) -> float:
        self.timed.append(backend.name)
        return self.seconds[backend.name]


class Largest(Likelihood):
    """A distance that no inner product tells: the largest difference."""

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        return torch.stack([(simulated[name] - observed[name]).flatten(1).abs().amax(1) for name in observed]).amax(0)


class Beside(nn.Module):
    """Reads the weight of its layer past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images.flatten(1)) * (1 + self.layer.weight.square().mean())


def victim_of(network: Callable[[], nn.Module]) -> Victim:
    built = seeded(network, 0)
    return Victim(built, architecture="odd", image_shape=(3, 8, 8), num_classes=10, initialization="seed 0")


def observe(victim: Victim | None = None, *, dtype: torch.dtype = torch.float64) -> Observation:
    return FedSGD(victim or small_victim()).to(dtype)(batch_of(2, 1).to(dtype))


def prepare(
    engine: Engine,
    observation: Observation,
    likelihood: Likelihood | None = None,
    *,
    evaluations: int = 10,
    trial: Callable[[Backend], float] | None = None,
) -> Prepared:
    trial = trial or Timer()  # which raises KeyError: nothing is to be timed
    return engine.prepare(
        observation, likelihood or Cosine(), restarts=1, evaluations=evaluations, state_bytes=0, trial=trial
    )


@pytest.fixture
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is worth measuring and nothing is hopeless."""
    monkeypatch.setattr(module, "WORTH_MEASURING", 0.0)
    monkeypatch.setattr(module, "HOPELESS", 1e9)


def test_little_work_is_not_measured() -> None:
    choice = prepare(Engine(), observe()).choice
    assert (choice.backend, choice.rates, choice.refused) == ("generic", {}, {})
    assert "too little to measure" in choice.reason


@pytest.mark.usefixtures("worthwhile")
@pytest.mark.parametrize("fastest", ["generic", "rules", "gram"])
def test_the_fastest_of_the_trial_wins(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    real = module.verify
    monkeypatch.setattr(module, "verify", lambda name, *rest: (verified.append(name), real(name, *rest)))
    trial = Timer(**{"generic": 0.4, "rules": 0.5, "gram": 0.6, fastest: 0.1})
    engine = Engine()
    prepared = prepare(engine, observe(), trial=trial)
    assert prepared.choice.backend == prepared.backend.name == fastest
    assert prepared.choice.rates == {name: 1 / seconds for name, seconds in trial.seconds.items()}
    assert verified == ["rules", "gram"]
    assert engine.choice is prepared.choice


@pytest.mark.usefixtures("worthwhile")
def test_an_attack_times_real_evaluations() -> None:
    """Through the attack's own trial."""
    attack = inverting_gradients(steps=1)
    choice = attack.prepare(observe()).choice
    assert choice.rates.keys() == {"generic", "rules", "gram"}
    assert choice.backend == max(choice.rates, key=lambda name: choice.rates[name])


def test_the_hopeless_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"generic": 9.0, "rules": 3.9, "gram": 1.0}
    monkeypatch.setattr(module, "cost", lambda name, *_, **__: Cost(200e9 * seconds[name], 0, 0))
    trial = Timer(rules=0.1, gram=0.2)
    choice = prepare(Engine(), observe(), trial=trial).choice
    assert trial.timed == ["rules", "gram"]
    assert choice.backend == "rules"
    assert choice.refused == {"generic": "9 times as slow by the cost model"}


def test_an_unknown_layer_leaves_the_generic_one(caplog: pytest.LogCaptureFixture) -> None:
    observation = observe(victim_of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.PReLU())))
    with caplog.at_level(logging.WARNING, "gibench"):
        choice = prepare(Engine(), observation).choice
    assert (choice.backend, choice.reason) == ("generic", "the only one that serves")
    assert choice.refused.keys() == {"rules", "gram"}
    assert all("PReLU" in reason for reason in choice.refused.values())
    assert "PReLU" in caplog.text
    with pytest.raises(BackendError, match="PReLU"):
        prepare(Engine(backend="rules"), observation)


@pytest.mark.usefixtures("worthwhile")
def test_local_steps_that_are_no_single_gradient_are_generic(caplog: pytest.LogCaptureFixture) -> None:
    batch = batch_of(2, 2).to(torch.float64)
    choice = prepare(Engine(), FedAvg(small_victim(), steps=2, rate=0.1).double()(batch)).choice
    assert choice.backend == "generic"
    assert "this client does more" in choice.refused["rules"]
    assert not caplog.records  # what the client does is no fault of the victim


@pytest.mark.usefixtures("worthwhile")
def test_one_known_local_step_is_a_gradient_times_the_rate() -> None:
    batch, client = batch_of(2, 2).to(torch.float64), FedAvg(small_victim(), steps=1, rate=0.1).double()
    backend = prepare(Engine(), client(batch), trial=Timer(generic=3, rules=1, gram=2)).backend
    assert isinstance(backend, RulesBackend)
    expected = client.simulate(batch.images, batch.labels)
    for name, value in backend.update(batch.images, batch.labels).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("worthwhile")
@pytest.mark.parametrize("hopeless", [4.0, 1e9])
def test_what_fails_verification_is_neither_chosen_nor_a_measure(
    hopeless: float, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the cost model holds the right one for hopeless beside the wrong ones."""
    monkeypatch.setattr(module, "HOPELESS", hopeless)
    flops = {"generic": 1e15, "rules": 1e9, "gram": 1e9}
    monkeypatch.setattr(module, "cost", lambda name, *_, **__: Cost(flops[name], 0, 0))
    observation = observe(victim_of(Beside))
    trial = Timer(generic=1.0)
    choice = prepare(Engine(), observation, trial=trial).choice
    assert (choice.backend, trial.timed) == ("generic", ["generic"])
    assert choice.refused.keys() == {"rules", "gram"}
    assert all("gives another" in reason for reason in choice.refused.values())
    assert "gives another" in caplog.text
    for name in ("rules", "gram"):
        with pytest.raises(BackendError, match=f"{name}.*gives another"):
            prepare(Engine(backend=name), observation)  # type: ignore[arg-type]


@pytest.mark.usefixtures("worthwhile")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differences_from_inner_products_need_double_precision(dtype: torch.dtype) -> None:
    trial = Timer(generic=3, rules=2, gram=1)
    choice = prepare(Engine(), observe(dtype=dtype), Gaussian(), trial=trial).choice
    single = dtype == torch.float32
    assert choice.backend == ("rules" if single else "gram")
    assert choice.refused == (
        {"gram": "Gaussian from inner products needs float64; choose 'rules' or 64-true."} if single else {}
    )


def test_differences_from_inner_products_are_not_forced_in_single_precision() -> None:
    with pytest.raises(BackendError, match="needs float64"):
        prepare(Engine(backend="gram"), observe(dtype=torch.float32), Gaussian())
    assert prepare(Engine(backend="gram"), observe(dtype=torch.float64), Gaussian()).choice.backend == "gram"


def test_a_choice_that_is_recalled_late_is_kept() -> None:
    """As by a run that goes on: its engine may have been asked already."""
    engine, observation = Engine(), observe()
    assert prepare(engine, observation).choice.backend == "generic"
    engine.recall(Choice("rules", "before"))
    prepared = prepare(engine, observation)
    assert (prepared.choice.reason, prepared.backend.name) == ("before", "rules")


@pytest.mark.usefixtures("worthwhile")
def test_the_last_that_fits_is_verified() -> None:
    """Where the generic one needs more memory than there is, and the others would give another gradient."""
    observation = observe(victim_of(Beside))
    observation = observation.model_copy(update={"bytes_per_update": 10**12})
    with pytest.raises(BackendError, match="no back end serves this victim within the budget"):
        prepare(Engine(), observation, trial=Timer())


@pytest.mark.usefixtures("worthwhile")
def test_a_distance_that_reads_the_update_is_not_for_gram() -> None:
    choice = prepare(Engine(), observe(), Largest(), trial=Timer(generic=2, rules=1)).choice
    assert choice.backend == "rules"
    assert "Largest is none" in choice.refused["gram"]


@pytest.mark.usefixtures("worthwhile")
@pytest.mark.parametrize("backend", ["auto", "rules"])
def test_a_flat_likelihood_simulates_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    observation = observe()
    monkeypatch.setattr(LocalGradient, "__call__", lambda *_: pytest.fail("simulated"))
    choice = prepare(Engine(backend=backend), observation, Flat()).choice  # type: ignore[arg-type]
    assert (choice.backend, choice.reason) == ("generic", "no update is simulated")
    attack = inverting_gradients(steps=2)
    attack.likelihood = Flat()
    assert attack(observation).images.isfinite().all()


@pytest.mark.usefixtures("worthwhile")
def test_a_recalled_choice_is_kept() -> None:
    """Even where all is worth measuring, for every kind of observation, and after the attack's own prepare."""
    engine, earlier = Engine(), Choice("rules", "measured before", rates={"rules": 7.0}, row_limit=3)
    engine.recall(earlier)
    for observation in (observe(), observe(dtype=torch.float32)):
        prepared = prepare(engine, observation)
        assert prepared.choice is engine.choice is earlier
        assert isinstance(prepared.backend, RulesBackend)
    attack = inverting_gradients(steps=1, engine=engine)
    assert attack.rows_at_once(observation, attack.prepare(observation)) == 3
    assert attack(observation).backend == "rules"


@pytest.mark.usefixtures("worthwhile")
def test_a_choice_holds_for_the_victim_as_it_stands() -> None:
    engine, observation, trial = Engine(), observe(), Timer(generic=3, rules=1, gram=2)
    first = prepare(engine, observation, trial=trial)
    assert prepare(engine, observation, trial=trial) is first
    assert prepare(engine, observation.select([1]), trial=trial) is first
    assert len(trial.timed) == 3
    with torch.no_grad():
        next(iter(observation.victim.parameters())).mul_(2)
    second = prepare(engine, observation, trial=trial)
    assert second is not first
    assert prepare(engine, observe(dtype=torch.float32), trial=trial) not in (first, second)
    with torch.autocast("cpu", torch.bfloat16):
        assert prepare(engine, observation, trial=trial) is not second
    assert prepare(engine, observation, Gaussian(), trial=trial) is not second
    assert prepare(engine, observation, trial=trial) is second


def test_the_generic_back_end_follows_the_observation() -> None:
    """It is kept for the victim, while what simulates may be another object each time."""
    engine, client, batch = Engine(), FedSGD(small_victim()).double(), batch_of(2, 1).to(torch.float64)
    first, second = client(batch), client(batch)
    prepare(engine, first)
    assert prepare(engine, second).backend.simulate is second.simulate  # type: ignore[attr-defined]


def test_copies_of_an_attack_choose_for_themselves() -> None:
    attack, observation = dlg(steps=1), observe()
    prepared = attack.prepare(observation)
    other = copy.deepcopy(attack)
    assert other.prepare(observation) is not prepared
    assert other.prepare(observation).backend is not prepared.backend
    assert attack.prepare(observation) is prepared


@pytest.mark.parametrize("memory", [0.0, -1.0])
def test_bad_budgets_are_named(memory: float) -> None:
    with pytest.raises(ConfigurationError, match=r"memory_gib is .*; it must be positive"):
        Engine(memory_gib=memory)


def test_bad_words_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"backend is 'fast'; choose auto, generic, rules, gram"):
        Engine(backend="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="compile is 'yes'; choose auto, off or on"):
        Engine(compile="yes")  # type: ignore[arg-type]
