"""MixUp and InstaHide: what is drawn, what is mixed, and that whoever knows the draw can explain the update."""

import pytest
import torch
from helpers import batch_of, small_victim
from references import defenses as reference
from references import updates
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gibench.attacks import GradientMatching
from gibench.clients import FedAvg, FedSGD
from gibench.defenses import Density, InstaHide, MixUp, Private, Release
from gibench.engine import Engine
from gibench.engine.gradient import LocalGradient
from gibench.errors import ConfigurationError, ShapeError
from gibench.labels import Given
from gibench.likelihoods import Gaussian
from gibench.search import Adam
from gibench.types import Observation, ThreatModel
from gibench.victims import Victim

KINDS = [MixUp, InstaHide]
KNOWN = ThreatModel(victim="initial", batch_norm="absent", defense="known", defense_randomness="known")
VICTIM = small_victim().double().eval()


def private(count: int, size: int, victim: Victim = VICTIM) -> Private:
    batch = batch_of(count, size)
    seeds = tuple(range(100, 100 + count))
    return Private(batch.images.to(victim.mean), batch.labels, seeds, victim, LocalGradient(victim))


def encoded(own: Private, release: Release) -> tuple[Tensor, Tensor]:
    """What the client trained on, by loops."""
    drawn, targets = release.randomness, torch.eye(10, dtype=own.images.dtype)[own.labels]
    images, labels = (
        torch.stack([reference.mixtures(*row) for row in zip(values, drawn["weights"], drawn["partners"], strict=True)])
        for values in (own.images, targets)
    )
    if "signs" in drawn:
        mean, std = own.victim.mean, own.victim.std
        images = (images - mean) / std * drawn["signs"] * std + mean
    return images, labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "images", "largest"), [(6, 4, 0.65), (2, 2, 0.65), (5, 3, 0.4), (4, 4, 1.0)])
def test_weights_sum_to_one_below_the_bound_and_partners_differ(
    kind: type[MixUp | InstaHide], size: int, images: int, largest: float
) -> None:
    drawn = kind(images=images, largest=largest).sample(private(8, size)).randomness
    weights, partners = drawn["weights"], drawn["partners"]
    assert weights.shape == partners.shape == (8, size, images)
    torch.testing.assert_close(weights.sum(2), torch.ones(8, size, dtype=weights.dtype))
    assert weights.min() > 0
    assert weights.max() <= largest
    assert torch.equal(partners[:, :, 0], torch.arange(size).expand(8, size))
    assert all(len(set(row)) == images for row in partners.flatten(0, 1).tolist())
    assert set(partners.unique().tolist()) == set(range(size))


def test_weights_have_the_law_that_is_stated() -> None:
    weights = MixUp(images=4, largest=1.0).sample(private(400, 4)).randomness["weights"].flatten(0, 1)
    own = 3 / 6
    torch.testing.assert_close(weights.mean(0), torch.tensor([own, 1 / 6, 1 / 6, 1 / 6]).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(weights[:, 0].var(), torch.tensor(own * own / 7).double(), rtol=0.1, atol=0)


def test_every_other_image_is_as_likely_a_partner() -> None:
    partners = MixUp(images=2, largest=1.0).sample(private(300, 4)).randomness["partners"]
    for own in range(4):
        counts = torch.bincount(partners[:, own, 1], minlength=4).double() / 300
        expected = torch.full((4,), 1 / 3).double()
        expected[own] = 0
        torch.testing.assert_close(counts, expected, rtol=0, atol=0.1)


def test_signs_are_fair_and_of_each_pixel() -> None:
    signs = InstaHide().sample(private(4, 4)).randomness["signs"]
    assert signs.shape == (4, 4, 3, 8, 8)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 0.1
    assert abs((signs[:, :, 0] * signs[:, :, 1]).mean()) < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_the_update_is_that_of_mixed_images_with_labels_mixed_alike(kind: type[MixUp | InstaHide]) -> None:
    own = private(2, 5)
    release = kind().sample(own)
    expected = updates.updates(own.victim, *encoded(own, release))
    for name, value in release.update.items():
        torch.testing.assert_close(value, expected[name])


def test_instahide_flips_what_the_network_gets() -> None:
    seen: list[Tensor] = []
    own = private(1, 4)

    def simulate(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        seen.append(images)
        return own.simulate(images, labels)

    drawn = InstaHide().sample(own._replace(simulate=simulate)).randomness
    MixUp().sample(own._replace(simulate=simulate))
    flipped, plain = (own.victim.normalize(images) for images in seen)
    torch.testing.assert_close(flipped, drawn["signs"] * plain)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_alone_and_in_a_group(kind: type[MixUp | InstaHide]) -> None:
    own = private(3, 4)
    together = kind(largest=0.4).sample(own)  # a tight bound: rows take differently many draws
    for row in range(3):
        alone = kind(largest=0.4).sample(
            own._replace(
                images=own.images[row : row + 1], labels=own.labels[row : row + 1], seeds=own.seeds[row : row + 1]
            )
        )
        for name, value in alone.randomness.items():
            assert torch.equal(value[0], together.randomness[name][row]), name
        for name, value in alone.update.items():
            torch.testing.assert_close(value[0], together.update[name][row])
    other = kind(largest=0.4).sample(own._replace(seeds=(7, 8, 9)))
    assert not torch.equal(other.randomness["weights"], together.randomness["weights"])


def observed(kind: type[MixUp | InstaHide], known: ThreatModel | None = KNOWN) -> tuple[Observation, Tensor]:
    batch = batch_of(2, 4)
    batch = batch.model_copy(update={"images": batch.images.double()})
    return FedSGD(VICTIM, threat_model=known, defense=kind())(batch), batch.images


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_explains_the_update_of_those_who_know_the_draw(kind: type[MixUp | InstaHide]) -> None:
    observation, images = observed(kind)
    hypothesis = kind().assume(observation, Gaussian())
    simulate = hypothesis.observation.simulate
    found = simulate(images, observation.labels, **hypothesis.known)
    value = hypothesis.likelihood(found, observation.update)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-20)
    swapped = simulate(images.flip(1), observation.labels, **hypothesis.known)
    assert (hypothesis.likelihood(swapped, observation.update) > 1e-8).all()
    plain = observation.simulate(images, observation.labels)
    assert (hypothesis.likelihood(plain, observation.update) > 1e-8).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_with_respect_to_images_and_labels_is_right(kind: type[MixUp | InstaHide]) -> None:
    observation, images = observed(kind)
    hypothesis = kind().assume(observation, Gaussian())

    def distance(images: Tensor, labels: Tensor) -> Tensor:
        simulated = hypothesis.observation.simulate(images, labels.softmax(2), **hypothesis.known)
        return hypothesis.likelihood(simulated, observation.update)

    logits = torch.linspace(-1, 1, 80, dtype=torch.float64).reshape(2, 4, 10).requires_grad_()
    leaf = images.clone().requires_grad_()
    assert torch.autograd.gradcheck(distance, (leaf, logits), fast_mode=True)
    gradients = torch.autograd.grad(distance(leaf, logits).sum(), (leaf, logits))
    assert all((gradient.flatten(2).norm(dim=2) > 0).all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_the_simulation_can_be_traced_so_that_attacks_compile(kind: type[MixUp | InstaHide]) -> None:
    observation, images = observed(kind)
    hypothesis = kind().assume(observation, Gaussian())

    def simulate(images: Tensor, labels: Tensor, known: dict[str, Tensor]) -> dict[str, Tensor]:
        return hypothesis.observation.simulate(images, labels, **known)

    arguments = (images.flip(1), observation.labels, dict(hypothesis.known))
    traced = make_fx(simulate)(*arguments)
    for name, value in simulate(*arguments).items():
        torch.testing.assert_close(traced(*arguments)[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attack_that_knows_the_draw_comes_closer_to_the_images(kind: type[MixUp | InstaHide]) -> None:
    scores = {}
    for name, known in (("known", KNOWN), ("unknown", None)):
        observation, images = observed(kind, known)
        attack = GradientMatching(
            likelihood=Density(distance=Gaussian()),
            search=Adam(steps=60, rate=0.05),
            labels=Given(),
            engine=Engine(compile="off"),
        )
        found = attack(observation)
        scores[name] = float((found.images - images).square().mean())
        alone = attack(observation.select([1])).images[0]
        torch.testing.assert_close(alone, found.images[1], rtol=1e-5, atol=1e-6)
    assert scores["known"] < scores["unknown"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_draw_the_encodings_are_matched(kind: type[MixUp | InstaHide]) -> None:
    observation, _ = observed(kind, None)
    distance = Gaussian()
    hypothesis = kind().assume(observation, distance)
    assert hypothesis.likelihood is distance
    assert hypothesis.observation is observation
    assert not hypothesis.known
    drawn = kind().sample(private(2, 4))
    images, labels = encoded(private(2, 4), drawn)
    value = distance(observation.simulate(images, labels), drawn.update)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-20)


@pytest.mark.parametrize("kind", KINDS)
def test_several_local_steps_train_on_the_mixtures(kind: type[MixUp | InstaHide]) -> None:
    known = KNOWN.model_copy(update={"update": "fedavg"})
    client = FedAvg(VICTIM, steps=2, local_batch_size=2, threat_model=known, defense=kind())
    batch = batch_of(2, 4)
    batch = batch.model_copy(update={"images": batch.images.double()})
    observation = client(batch)
    hypothesis = kind().assume(observation, Gaussian())
    found = hypothesis.observation.simulate(batch.images, observation.labels, **hypothesis.known)
    value = hypothesis.likelihood(found, observation.update)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-20)
    assert torch.equal(client.target(batch).images, batch.images)


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_refuses(kind: type[MixUp | InstaHide]) -> None:
    with pytest.raises(ShapeError, match="B must be >= 2"):
        kind(images=2).sample(private(1, 1))
    with pytest.raises(ShapeError, match="B must be >= 4"):
        kind().sample(private(1, 3))
    for options in ({"images": 1}, {"largest": 0.25}, {"largest": 1.1}, {"largest": float("nan")}):
        with pytest.raises(ConfigurationError):
            kind(**options)
    with pytest.raises(ConfigurationError, match="raise `largest`"):
        kind(images=8, largest=0.126).sample(private(1, 8))
