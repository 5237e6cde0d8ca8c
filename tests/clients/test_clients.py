"""Clients against plain autograd, one update at a time."""

import gc
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim
from references import matching as reference
from torch import Tensor, nn

from gibench.clients import Client, FedAvg, FedSGD, SecureAggregation
from gibench.errors import ConfigurationError, NonFiniteError, ShapeError, ThreatModelError
from gibench.types import ThreatModel
from gibench.victims import Victim

PLAIN: dict[str, Any] = {"victim": "initial", "batch_norm": "absent"}


def threat(**flags: Any) -> ThreatModel:
    return ThreatModel(**{**PLAIN, **flags})


def double(client: Client) -> Client:
    return client.double()


def stack(updates: list[list[Tensor]], client: Client) -> dict[str, Tensor]:
    names = [name for name, _ in client.victim.named_parameters()]
    return {name: torch.stack([update[i] for update in updates]) for i, name in enumerate(names)}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)


def test_fedsgd_is_the_gradient_of_each_batch() -> None:
    client = double(FedSGD(small_victim()))
    batch = batch_of(3, 2).to(torch.float64)
    expected = [reference.gradient(client.victim, x, y) for x, y in zip(batch.images, batch.labels, strict=True)]
    assert_equal(client(batch).update, stack(expected, client))


@pytest.mark.parametrize(("steps", "size"), [(1, 4), (2, 2), (5, 2), (3, 1)])
def test_fedavg_is_local_sgd(steps: int, size: int) -> None:
    client = double(FedAvg(small_victim(), steps=steps, local_batch_size=size, rate=0.1))
    batch = batch_of(2, 4).to(torch.float64)
    expected = [
        reference.fedavg(client.victim, x, y, steps=steps, size=size, rate=0.1)
        for x, y in zip(batch.images, batch.labels, strict=True)
    ]
    assert_equal(client(batch).update, stack(expected, client))


def test_secure_aggregation_is_the_exact_mean() -> None:
    inner = FedAvg(small_victim(), steps=2, local_batch_size=1, rate=0.1)
    client = double(SecureAggregation(inner, clients=2))
    batch = batch_of(2, 4).to(torch.float64)
    expected = []
    for x, y in zip(batch.images, batch.labels, strict=True):
        first, second = (
            reference.fedavg(client.victim, x[part], y[part], steps=2, size=1, rate=0.1)
            for part in (slice(0, 2), slice(2, 4))
        )
        expected.append([(a + b) / 2 for a, b in zip(first, second, strict=True)])
    assert_equal(client(batch).update, stack(expected, client))


CLIENTS = {
    "fedsgd": lambda victim, known: FedSGD(victim, threat_model=known),
    "fedavg": lambda victim, known: FedAvg(
        victim, steps=2, local_batch_size=2, threat_model=known.model_copy(update={"update": "fedavg"})
    ),
    "aggregated": lambda victim, known: SecureAggregation(FedSGD(victim, threat_model=known), clients=2),
}


@pytest.mark.parametrize("regime", ["absent", "eval", "private", "shared"])
@pytest.mark.parametrize("kind", CLIENTS)
def test_replaying_the_private_images_reproduces_the_update_exactly(kind: str, regime: str) -> None:
    """The one property that every attack stands on; also under each BatchNorm regime, and with soft labels."""
    victim = small_victim(batch_norm=regime != "absent")
    client = CLIENTS[kind](victim, threat(batch_norm=regime))
    batch = batch_of(2, 4)
    observation = client(batch)
    replay = observation.simulate(batch.images, batch.labels)
    for name, update in observation.update.items():
        assert torch.equal(replay[name], update)
    soft = observation.simulate(batch.images, nn.functional.one_hot(batch.labels, 10).float())
    for name, update in observation.update.items():
        torch.testing.assert_close(soft[name], update, rtol=1e-4, atol=1e-6)


def reachable_tensors(start: object) -> list[Tensor]:
    """Every tensor that reflection finds from `start`, outside of modules, classes and the globals of functions."""
    found, seen, todo = [], set(), [start]
    while todo:
        item = todo.pop()
        is_globals = isinstance(item, dict) and "__builtins__" in item
        if id(item) in seen or isinstance(item, type | ModuleType) or is_globals:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        todo += [item.grad_fn] if isinstance(item, Tensor) else gc.get_referents(item)
    return found


@pytest.mark.parametrize("regime", ["absent", "shared"])
@pytest.mark.parametrize("kind", CLIENTS)
def test_no_private_pixel_is_within_reach(kind: str, regime: str) -> None:
    """R1: neither a field, nor a closure, a hook, a cache or an autograd graph leads back to the images or labels."""
    batch = batch_of(2, 4)
    client = CLIENTS[kind](small_victim(batch_norm=regime != "absent"), threat(batch_norm=regime))
    observation = client(batch)
    reachable = reachable_tensors(observation)
    pointers = {tensor.untyped_storage().data_ptr() for tensor in reachable}
    assert {parameter.data_ptr() for parameter in observation.victim.parameters()} <= pointers
    assert all(tensor.grad_fn is None for tensor in reachable)
    assert batch.images.data_ptr() not in pointers
    assert batch.labels.data_ptr() not in pointers
    pixels = batch.images.flatten(0, 1).flatten(1)
    for tensor in reachable:
        if tensor.numel() % pixels.shape[1] == 0:
            assert not any(torch.equal(row, image) for row in tensor.reshape(-1, pixels.shape[1]) for image in pixels)


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_client_sets_the_mode_on_every_call(kind: str) -> None:
    """Lightning's fit puts every module into training mode, where public statistics would not be used."""
    client = CLIENTS[kind](small_victim(batch_norm=True), threat(batch_norm="eval"))
    batch = batch_of(1, 4)
    before = client(batch).update
    after = client.train()(batch).update
    for name, update in before.items():
        assert torch.equal(after[name], update)


def test_the_memory_estimate_follows_the_work() -> None:
    """Derivatives go back through every local step and every client; hidden steps are not simulated."""
    one, many = (FedAvg(small_victim(), steps=steps)(batch_of(1, 4)).bytes_per_update for steps in (1, 8))
    assert one == FedSGD(small_victim())(batch_of(1, 4)).bytes_per_update
    assert 2 * one < many < 8 * one
    hidden = FedAvg(small_victim(), steps=8, threat_model=threat(update="fedavg", local_steps="unknown"))
    assert hidden(batch_of(1, 4)).bytes_per_update == one
    pair = SecureAggregation(FedSGD(small_victim()), clients=2)
    two = FedAvg(small_victim(), steps=2)
    assert pair(batch_of(1, 4)).bytes_per_update == two(batch_of(1, 4)).bytes_per_update > one


@pytest.mark.parametrize("kind", CLIENTS)
def test_simulation_is_differentiable_in_images_and_soft_labels(kind: str) -> None:
    client = double(CLIENTS[kind](small_victim(), threat()))
    batch = batch_of(1, 2).to(torch.float64)
    soft = torch.full((1, 2, 10), 0.1, dtype=torch.float64)

    def norm(images: Tensor, labels: Tensor) -> Tensor:
        return sum(update.square().sum() for update in client.simulate(images, labels).values())  # type: ignore[return-value]

    inputs = (batch.images.requires_grad_(), soft.requires_grad_())
    assert torch.autograd.gradcheck(norm, inputs, fast_mode=True)


def test_batch_norm_regimes_differ_and_leave_the_victim_alone() -> None:
    victim = small_victim(batch_norm=True).train()
    before = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    batch = batch_of(2, 4)
    updates = {
        regime: FedSGD(victim, threat_model=threat(batch_norm=regime))(batch).update
        for regime in ("eval", "private", "shared")
    }
    name = next(iter(updates["eval"]))
    assert not torch.allclose(updates["eval"][name], updates["private"][name])
    assert torch.equal(updates["private"][name], updates["shared"][name])
    assert victim.training
    assert all(torch.equal(before[name], tensor) for name, tensor in victim.state_dict().items())


def test_private_regime_normalizes_by_the_batch_as_training_mode_does() -> None:
    victim = small_victim(batch_norm=True)
    batch = batch_of(1, 4)
    client = FedSGD(victim, threat_model=threat(batch_norm="private"))
    expected = reference.gradient(victim.train(), batch.images[0], batch.labels[0])
    for update, gradient in zip(client(batch).update.values(), expected, strict=True):
        torch.testing.assert_close(update[0], gradient, rtol=1e-4, atol=1e-6)


def test_shared_statistics_are_those_of_the_layer_inputs() -> None:
    victim = small_victim(batch_norm=True)
    batch = batch_of(2, 4)
    shared = FedSGD(victim, threat_model=threat(batch_norm="shared"))(batch).batch_statistics
    assert shared is not None
    (statistics,) = shared.values()
    convolution = victim.network[0]
    for row, images in enumerate(batch.images):
        values = convolution(victim.normalize(images))
        torch.testing.assert_close(statistics[row, 0], values.mean((0, 2, 3)))
        torch.testing.assert_close(statistics[row, 1], values.var((0, 2, 3), correction=0))


@pytest.mark.parametrize(
    ("labels", "ordered", "counts"), [("none", 0, 0), ("set", 0, 1), ("counts", 0, 1), ("ordered", 1, 1)]
)
def test_labels_are_handed_over_as_the_threat_model_says(labels: str, ordered: int, counts: int) -> None:
    batch = batch_of(2, 4)
    observation = FedSGD(small_victim(), threat_model=threat(labels=labels))(batch)
    assert (observation.labels is not None) == bool(ordered)
    assert (observation.label_counts is not None) == bool(counts)
    if labels == "set":
        assert observation.label_counts.max() == 1  # type: ignore[union-attr]
    if labels == "counts":
        assert torch.equal(observation.label_counts, torch.stack([row.bincount(minlength=10) for row in batch.labels]))


def test_hidden_local_steps_leave_a_single_gradient() -> None:
    known = threat(update="fedavg", local_steps="unknown")
    client = FedAvg(small_victim(), steps=3, local_batch_size=1, rate=0.1, threat_model=known)
    batch = batch_of(1, 3)
    observation = client(batch)
    guess = observation.simulate(batch.images, batch.labels)
    expected = reference.gradient(client.victim, batch.images[0], batch.labels[0])
    for update, gradient in zip(guess.values(), expected, strict=True):
        torch.testing.assert_close(update[0], gradient, rtol=1e-4, atol=1e-6)


def without_statistics() -> Victim:
    victim = small_victim(batch_norm=True)
    victim.network[1] = nn.BatchNorm2d(4, track_running_stats=False)  # type: ignore[operator]
    return victim


def test_a_small_budget_cuts_the_updates_into_parts_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(5, 2).to(torch.float64)
    client = FedSGD(small_victim()).double()
    whole = client(batch).update
    sizes: list[int] = []
    simulate = client.simulate

    def watched(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        sizes.append(len(images))
        return simulate(images, labels)

    monkeypatch.setattr(client, "simulate", watched)
    monkeypatch.setattr("gibench.clients.base.BUDGET", int(2.5 * client(batch).bytes_per_update))
    sizes.clear()
    assert_equal(client(batch).update, whole)
    assert sizes == [2, 2, 1]


BAD = {
    "update": (lambda: FedSGD(small_victim(), threat_model=threat(update="fedavg")), ThreatModelError),
    "stage": (lambda: FedSGD(small_victim(), threat_model=threat(victim="trained")), ThreatModelError),
    "regime of a net without": (
        lambda: FedSGD(small_victim(), threat_model=threat(batch_norm="eval")),
        ThreatModelError,
    ),
    "no regime": (lambda: FedSGD(small_victim(batch_norm=True)), ThreatModelError),
    "no running statistics": (
        lambda: FedSGD(without_statistics(), threat_model=threat(batch_norm="eval")),
        ThreatModelError,
    ),
    "labels that tell the batch size": (
        lambda: FedSGD(small_victim(), threat_model=threat(batch_size="unknown", labels="counts")),
        ThreatModelError,
    ),
    "defense": (lambda: FedSGD(small_victim(), threat_model=threat(defense="known")), ThreatModelError),
    "no steps": (lambda: FedAvg(small_victim(), steps=0), ConfigurationError),
    "batch": (lambda: FedAvg(small_victim(), steps=1, local_batch_size=3)(batch_of(1, 4)), ShapeError),
    "clients": (lambda: SecureAggregation(FedSGD(small_victim()), clients=3)(batch_of(1, 4)), ShapeError),
    "image shape": (lambda: FedSGD(small_victim())(batch_of(1, 1, side=16)), ShapeError),
    "classes": (lambda: FedSGD(small_victim(num_classes=3))(batch_of(4, 4)), ShapeError),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    build, error = BAD[case]
    with pytest.raises(error):
        build()


def test_a_non_finite_update_is_named() -> None:
    victim = small_victim()
    with torch.no_grad():
        next(victim.parameters()).fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="network"):
        FedSGD(victim)(batch_of(1, 1))
