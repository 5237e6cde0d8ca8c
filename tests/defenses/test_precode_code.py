"""PRECODE without its noise: the code against the client's own, the truth, derivatives, and a search that it helps."""

import pytest
import torch
from helpers import batch_of
from torch import Tensor
from torch.nn import functional as F

from gibench.attacks import GradientMatching
from gibench.clients import FedSGD
from gibench.defenses import CodeFromGradient, Defense, Density, GaussianNoise, Precode
from gibench.errors import BackendError, ThreatModelError
from gibench.labels import Given
from gibench.likelihoods import Cosine, Hypothesis, Likelihood
from gibench.search import Adam
from gibench.types import Batch, Observation, Reconstruction, ThreatModel, Update
from gibench.victims import VariationalBottleneck, Victim, precode_lenet, precode_mlp

SMALL = (3, 8, 8)
BETA = 0.3  # large, so that its share of the update shows
KNOWN = ThreatModel(victim="initial", batch_norm="absent", defense="known", defense_randomness="known")
VICTIMS = {"mlp": precode_mlp, "lenet": precode_lenet}


def build(name: str) -> Victim:
    return VICTIMS[name](image_shape=SMALL).double()


def exact_batch(updates: int, size: int = 1) -> Batch:
    return batch_of(updates, size).to(torch.float64)


def observed(name: str, batch: Batch, threat_model: ThreatModel | None = None) -> Observation:
    return FedSGD(build(name), defense=Precode(beta=BETA), threat_model=threat_model)(batch)


def before_decoder(victim: Victim, images: Tensor, noise: Tensor) -> Tensor:
    """The code of (N, C, H, W) with its noise (N, K), the network walked by hand."""
    inputs = victim.normalize(images)
    for layer in victim.network.children():
        if isinstance(layer, VariationalBottleneck):
            mean, spread = layer.statistics(inputs).chunk(2, 1)
            return mean + F.softplus(spread) * noise
        inputs = layer(inputs)
    raise AssertionError("no bottleneck")


def difference(simulated: Update, hypothesis: Hypothesis) -> Tensor:
    """|simulated - observed| / |observed|, over all tensors, for each update."""
    observed = hypothesis.observation.update
    lengths = [
        torch.stack([value.square().flatten(1).sum(1) for value in update]).sum(0).sqrt()
        for update in ([simulated[name] - observed[name] for name in observed], observed.values())
    ]
    return lengths[0] / lengths[1]


@pytest.mark.parametrize("name", VICTIMS)
def test_the_code_is_the_clients_own(name: str) -> None:
    batch = exact_batch(3)
    told, untold = observed(name, batch, KNOWN), observed(name, batch)
    assert told.randomness is not None
    with torch.no_grad():
        expected = before_decoder(build(name), batch.images[:, 0], told.randomness["noise"][:, 0])
    found = CodeFromGradient().hypothesis(untold)
    assert found.hidden is None
    assert found.known["code"].shape == (3, 1, 256)
    torch.testing.assert_close(found.known["code"][:, 0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", VICTIMS)
def test_the_truth_explains_the_update_without_its_noise(name: str) -> None:
    batch = exact_batch(3)
    found = CodeFromGradient().hypothesis(observed(name, batch))
    simulated = found.observation.simulate(batch.images, batch.labels, **found.known)
    assert (difference(simulated, found) < 1e-10).all()
    assert (found.likelihood(simulated, found.observation.update) < 1e-10).all()
    other = found.observation.simulate(batch.images.flip(-1), batch.labels, **found.known)
    assert (difference(other, found) > 1e-3).all()


@pytest.mark.parametrize("name", VICTIMS)
def test_the_simulation_sends_the_code_whatever_the_image(name: str) -> None:
    """All that follows the code is the client's own: the image is judged by what comes before."""
    batch = exact_batch(2)
    found = CodeFromGradient().hypothesis(observed(name, batch))
    simulated = found.observation.simulate(1 - batch.images, batch.labels, **found.known)
    names = list(simulated)
    behind = names[names.index("network.bottleneck.decoder.weight") :]
    assert len(behind) >= 6
    for parameter in behind:
        torch.testing.assert_close(simulated[parameter], found.observation.update[parameter], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", VICTIMS)
def test_derivatives_are_those_of_finite_differences(name: str) -> None:
    batch = exact_batch(2)
    found = CodeFromGradient().hypothesis(observed(name, batch))
    source = torch.Generator().manual_seed(0)
    images = torch.rand(batch.images.shape, generator=source, dtype=torch.float64).requires_grad_()
    soft = torch.randn(2, 1, 10, generator=source, dtype=torch.float64).softmax(2).requires_grad_()

    def value(images: Tensor, labels: Tensor) -> Tensor:
        simulated = found.observation.simulate(images, labels, **found.known)
        return found.likelihood(simulated, found.observation.update)

    derivatives = torch.autograd.grad(value(images, soft).sum(), (images, soft))
    for place, derivative in enumerate(derivatives):
        direction = torch.randn(derivative.shape, generator=source, dtype=torch.float64)
        ends = []
        for step in (1e-5, -1e-5):
            point = [images.detach(), soft.detach()]
            point[place] = point[place] + step * direction
            ends.append(value(*point))
        slopes = (ends[0] - ends[1]) / 2e-5
        assert slopes.abs().min() > 1e-6
        torch.testing.assert_close((derivative * direction).flatten(1).sum(1), slopes, rtol=1e-5, atol=1e-9)


def code_of(name: str, observation: Observation) -> Tensor:
    """The code where the decoder's gradient is multiplied by a factor."""
    factor = {"dead": 0.0, "faint": 1e-30}[name]
    update = {key: value.float() * (factor if "decoder" in key else 1) for key, value in observation.update.items()}
    return CodeFromGradient().hypothesis(observation.model_copy(update={"update": update})).known["code"]


def test_faint_gradients_hold_the_code_and_dead_ones_none() -> None:
    """In single precision the square of the faint one is zero."""
    observation = observed("lenet", exact_batch(2))
    expected = CodeFromGradient().hypothesis(observation).known["code"].float()
    torch.testing.assert_close(code_of("faint", observation), expected, rtol=1e-3, atol=1e-4)
    dead = code_of("dead", observation)
    assert dead.shape == (2, 1, 256)
    assert not dead.any()


@pytest.mark.parametrize("shift", [-60.0, -300.0])
def test_narrow_distributions_stay_finite(shift: float) -> None:
    """Deviations of 1e-26 and of 0 in single precision, with the client's code far from every mean."""
    batch = batch_of(2, 1)
    observation = FedSGD(precode_lenet(image_shape=SMALL, initialization="default"), defense=Precode())(batch)
    bottleneck = observation.victim.network.bottleneck
    with torch.no_grad():
        bottleneck.statistics.bias[256:] += shift
    found = CodeFromGradient(distance=Cosine()).hypothesis(observation)
    images = torch.full_like(batch.images, 0.5).requires_grad_()
    simulated = found.observation.simulate(images, batch.labels, **found.known)
    match = found.likelihood(simulated, observation.update)
    assert match.isfinite().all()
    assert torch.autograd.grad(match.sum(), images)[0].isfinite().all()


# In a search.


def attack(likelihood: Likelihood, observation: Observation, steps: int = 80) -> Reconstruction:
    return GradientMatching(likelihood=likelihood, search=Adam(steps=steps, rate=0.1, signed=True), labels=Given())(
        observation
    )


def test_it_comes_closer_than_the_search_for_the_noise() -> None:
    """Under the authors' beta, with which the gradient says little of mean and deviation."""
    batch = exact_batch(2)
    observation = FedSGD(build("lenet"), defense=Precode())(batch)
    found, searched = (
        (attack(likelihood, observation).images - batch.images).square().flatten(1).mean(1)
        for likelihood in (CodeFromGradient(distance=Cosine()), Density(distance=Cosine()))
    )
    assert (found < searched / 3).all()


def test_rows_alone_are_rows_together() -> None:
    observation = observed("lenet", exact_batch(3))
    together = attack(CodeFromGradient(distance=Cosine()), observation, steps=10)
    for row in (2, 0):
        alone = attack(CodeFromGradient(distance=Cosine()), observation.select([row]), steps=10)
        torch.testing.assert_close(alone.images[0], together.images[row], rtol=1e-6, atol=1e-6)


# What it refuses.


@pytest.mark.parametrize(
    ("defense", "size", "message"),
    [
        (Precode(), 2, r"2 images holds combinations.*set the batch size to 1"),
        (GaussianNoise(sigma=0.1), 1, r"GaussianNoise\(sigma=0\.1\); use gibench\.defenses\.Density"),
    ],
    ids=["two images", "another defense"],
)
def test_what_holds_no_code_is_refused(defense: Defense, size: int, message: str) -> None:
    observation = FedSGD(build("lenet"), defense=defense)(exact_batch(1, size))
    with pytest.raises(ThreatModelError, match=message) as refused:
        attack(CodeFromGradient(), observation, steps=1)
    assert "\n" not in str(refused.value)


def test_no_defense_is_refused_and_so_is_use_without_an_observation() -> None:
    observation = FedSGD(build("lenet"))(exact_batch(1))
    with pytest.raises(ThreatModelError, match="defense"):
        attack(CodeFromGradient(), observation, steps=1)
    with pytest.raises(BackendError, match="GradientMatching"):
        CodeFromGradient()(observation.update, observation.update)
