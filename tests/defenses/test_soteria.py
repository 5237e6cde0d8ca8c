"""Soteria against a loop of backward passes, its percentile, what attackers make of it, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import batch_of, fully_connected, small_victim
from references import defenses as reference
from torch import Tensor, nn

from gibench.clients import FedSGD
from gibench.clients.batch_norm import use_batch_statistics
from gibench.defenses import Defense, Private, Release, Soteria, soteria
from gibench.engine.gradient import LocalGradient
from gibench.errors import ConfigurationError, ShapeError
from gibench.likelihoods import Cosine, Gaussian, Without
from gibench.types import ThreatModel
from gibench.victims import Victim, seeded


def convolutional(*, batch_norm: bool = False) -> Victim:
    """A ReLU net with two linear layers, which normalizes, in float64."""

    def build() -> nn.Module:
        norm = [nn.BatchNorm2d(4)] if batch_norm else []
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            *norm,
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, 20),
            nn.ReLU(),
            nn.Linear(20, 10),
        )

    network = seeded(build, 3)
    options = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "initialization": "default"}
    return Victim(network, architecture="test", image_shape=(3, 8, 8), num_classes=10, **options).double().eval()


def release(defense: Defense, victim: Victim, *, updates: int = 1, size: int = 2) -> tuple[Release, Private]:
    batch = batch_of(updates, size)
    images = batch.images.to(victim.mean)
    private = Private(images, batch.labels, tuple(range(updates)), victim, LocalGradient(victim))
    return defense.sample(private), private


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("place", [4, 6])
def test_scores_are_those_of_one_backward_pass_for_each_feature(place: int, eps: float) -> None:
    victim, images = convolutional(), batch_of(1, 2).images[0].double()
    layer = victim.network[place]
    scores = soteria.feature_scores(victim, layer, images, eps=eps)
    expected = reference.soteria_scores(victim.network[:place], victim.normalize(images), eps=eps)
    assert (expected == 0).any(), "ReLU leaves features that do not react"
    torch.testing.assert_close(scores, expected)


def test_features_in_small_chunks_score_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    victim, images = convolutional(), batch_of(1, 2).images[0].double()
    whole = soteria.feature_scores(victim, victim.network[6], images, eps=0.1)
    monkeypatch.setattr(soteria, "_BYTES", 3 * soteria._COPIES * 2 * 3 * 64 * 8)
    torch.testing.assert_close(soteria.feature_scores(victim, victim.network[6], images, eps=0.1), whole)


def test_the_derivative_goes_through_the_statistics_of_the_batch() -> None:
    victim, images = convolutional(batch_norm=True), batch_of(1, 3).images[0].double()
    use_batch_statistics(victim)
    inputs = victim.normalize(images).requires_grad_()
    features = victim.network[:6](inputs)
    expected = torch.zeros(20, dtype=torch.float64)
    for feature in range(20):
        (derivative,) = torch.autograd.grad(features[:, feature].sum(), inputs, retain_graph=True)
        expected[feature] = (derivative.flatten(1).norm(dim=1) / (features[:, feature].abs() + 0.1)).sum()
    del victim.network[6]  # the ReLU, so that every feature reacts
    torch.testing.assert_close(soteria.feature_scores(victim, victim.network[6], images, eps=0.1), expected.detach())


def test_only_the_columns_of_one_weight_are_erased() -> None:
    victim = convolutional()
    sent, private = release(Soteria(pruned=0.5, layer="network.4"), victim, updates=3)
    plain = private.simulate(private.images, private.labels)
    kept = sent.randomness["kept"]
    assert kept.shape == (3, 16)
    assert kept.sum(1).tolist() == [8, 8, 8]
    assert len({tuple(row) for row in kept.tolist()}) > 1, "the mask depends on the images"
    for name, value in plain.items():
        if name == "network.4.weight":
            torch.testing.assert_close(sent.update[name], torch.where(kept[:, None], value, 0.0), rtol=0, atol=0)
        else:
            assert torch.equal(sent.update[name], value)


@pytest.mark.parametrize(
    "scores",
    [
        [5.0, 1.0, 4.0, 2.0, 3.0],
        [0.0, 0.0, 0.0, 2.0, 1.0],
        [1.0, 1.0, 1.0, 1.0, 1.0],
        [0.5],
        [3.0, 1.0, 1.0, 2.0, 9.0, 2.0, 7.0],
    ],
)
@pytest.mark.parametrize("pruned", [0.0, 0.01, 0.25, 0.3, 0.5, 0.75, 0.8, 0.999])
def test_the_threshold_is_that_of_a_percentile(
    monkeypatch: pytest.MonkeyPatch, scores: list[float], pruned: float
) -> None:
    monkeypatch.setattr(soteria, "feature_scores", lambda *_, **__: torch.tensor(scores, dtype=torch.float64))
    victim = small_victim()
    kept = Soteria(pruned=pruned)._kept(victim, victim.network[-1], torch.zeros(1, 3, 8, 8))
    assert kept.tolist() == (np.array(scores) >= np.percentile(scores, 100 * pruned)).tolist()


def test_infinite_scores_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    infinite = torch.tensor([1.0, torch.inf, torch.inf, 2.0])
    monkeypatch.setattr(soteria, "feature_scores", lambda *_, **__: infinite)
    victim = small_victim()
    kept = Soteria(pruned=0.9, eps=0.0)._kept(victim, victim.network[-1], torch.zeros(1, 3, 8, 8))
    assert kept.tolist() == [False, True, True, False]


def test_a_zero_feature_that_reacts_scores_infinity_without_eps() -> None:
    victim = fully_connected(side=4).eval()
    images = torch.full((1, 3, 4, 4), 0.5)
    images[0, 0, 0, 0] = 0.0
    scores = soteria.feature_scores(victim, victim.network[1], images, eps=0.0)
    assert scores.tolist() == [torch.inf] + [2.0] * 47


@pytest.mark.parametrize(
    ("victim", "name", "features"),
    [(convolutional(), "network.4", 16), (small_victim().eval(), "network.3", 64)],
    ids=["two", "one"],
)
def test_the_default_layer_is_the_last_but_one_or_the_only_one(victim: Victim, name: str, features: int) -> None:
    sent, private = release(Soteria(pruned=0.8), victim)
    plain = private.simulate(private.images, private.labels)
    assert [key for key in plain if not torch.equal(plain[key], sent.update[key])] == [f"{name}.weight"]
    assert sent.randomness["kept"].shape == (1, features)


def test_a_row_is_the_same_alone_and_in_a_group() -> None:
    victim = convolutional()
    together, private = release(Soteria(pruned=0.5), victim, updates=3)
    for row in range(3):
        alone = private._replace(
            images=private.images[row : row + 1], labels=private.labels[row : row + 1], seeds=(row,)
        )
        assert torch.equal(Soteria(pruned=0.5).sample(alone).randomness["kept"][0], together.randomness["kept"][row])


def distances(victim: Victim) -> tuple[Tensor, Tensor, Tensor]:
    """At the truth: of the attacker who knows the defense, who drops the tensor, and who knows nothing."""
    batch = batch_of(2, 2)
    batch = batch.model_copy(update={"images": batch.images.double()})
    client = FedSGD(victim, defense=Soteria(pruned=0.5, layer="network.4"))
    observation = client(batch)
    simulated = observation.simulate(batch.images, batch.labels)
    aware = client.defense.assume(observation, Gaussian())  # type: ignore[union-attr]
    dropping = Without(Cosine(), tensors=["network.4.weight"]).hypothesis(observation)
    known, dropped = (part.likelihood(simulated, part.observation.update) for part in (aware, dropping))
    return known, dropped, Cosine()(simulated, observation.update)


def test_the_truth_explains_the_update_of_those_who_look_past_the_erased_columns() -> None:
    known, dropped, naive = distances(convolutional())
    torch.testing.assert_close(known, torch.zeros_like(known), rtol=0, atol=1e-20)
    torch.testing.assert_close(dropped, torch.zeros_like(dropped), rtol=0, atol=1e-12)
    assert (naive > 1e-3).all()


def test_known_erased_columns_are_handed_over() -> None:
    victim = small_victim()
    threat_model = ThreatModel(
        victim="initial", batch_norm="absent", defense="known", defense_randomness="known", labels="ordered"
    )
    observation = FedSGD(victim, threat_model=threat_model, defense=Soteria(pruned=0.25))(batch_of(2, 1))
    assert observation.randomness is not None
    erased = observation.update["network.3.weight"].abs().sum(1) == 0
    assert torch.equal(erased, ~observation.randomness["kept"])


def test_what_it_refuses() -> None:
    victim = convolutional()
    for options in ({"pruned": 1.0}, {"pruned": -0.1}, {"pruned": float("nan")}, {"pruned": 0.5, "eps": -1.0}):
        with pytest.raises(ConfigurationError):
            Soteria(**options)
    with pytest.raises(ConfigurationError, match=r"network\.0.*name one of network\.4, network\.6"):
        Soteria(pruned=0.5, layer="network.0").check(victim, "gradient")
    with pytest.raises(ConfigurationError, match="send one"):
        Soteria(pruned=0.5).check(victim, "fedavg")
    convolutions = nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())
    bare = Victim(convolutions, architecture="test", image_shape=(3, 8, 8), num_classes=10, initialization="default")
    with pytest.raises(ConfigurationError, match="has none"):
        Soteria(pruned=0.5).check(bare, "gradient")


def test_a_layer_that_gets_no_features_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(2), nn.Linear(64, 5), nn.Flatten(), nn.Linear(15, 10))
    victim = Victim(network, architecture="test", image_shape=(3, 8, 8), num_classes=10, initialization="default")
    with pytest.raises(ShapeError, match=r"\(2, 3, 64\)"):
        release(Soteria(pruned=0.5, layer="network.1"), victim)


def test_real_images_on_convbig(cifar10_root: Path) -> None:
    from gibench.victims import convbig

    with np.load(cifar10_root / "cifar10.npz") as archive:
        images = torch.from_numpy(archive["test_images"][:1]).permute(0, 3, 1, 2)[None] / 255
    victim = convbig().eval()
    private = Private(images, torch.tensor([[3]]), (0,), victim, LocalGradient(victim))
    sent = Soteria(pruned=0.8).sample(private)
    assert (sent.update["network.fc2.weight"] != 0).any(1).sum() == 400
    assert sent.randomness["kept"].sum() == 400
