"""PRECODE: its update against plain autograd, what an attacker is handed, and which attacks it stops."""

import math

import pytest
import torch
from helpers import batch_of, small_victim
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from gibench.attacks import BiasAttack, GradientMatching
from gibench.clients import FedAvg, FedSGD
from gibench.defenses import Density, Precode
from gibench.errors import ConfigurationError
from gibench.labels import Given
from gibench.likelihoods import Cosine
from gibench.search import Adam
from gibench.types import Batch, Observation, ThreatModel, Update
from gibench.victims import VariationalBottleneck, Victim, precode_lenet, precode_mlp

SMALL = (3, 8, 8)
BETA = 0.3  # large, so that its share of the update shows
KNOWN = ThreatModel(victim="initial", batch_norm="absent", defense="known", defense_randomness="known")


def victim() -> Victim:
    return precode_lenet(image_shape=SMALL, initialization="default").double()


def exact_batch(updates: int, size: int) -> Batch:
    return batch_of(updates, size).to(torch.float64)


def observed(batch: Batch, threat_model: ThreatModel | None = None, beta: float = BETA) -> Observation:
    return FedSGD(victim(), defense=Precode(beta=beta), threat_model=threat_model)(batch)


def drawn(observation: Observation) -> Tensor:
    assert observation.randomness is not None
    return observation.randomness["noise"]


def reference(victim: Victim, images: Tensor, labels: Tensor, noise: Tensor) -> list[Tensor]:
    """The gradient of one batch by plain autograd, the network walked by hand, torch's own divergence."""
    inputs, penalty = victim.normalize(images), torch.zeros((), dtype=torch.float64)
    for layer in victim.network.children():
        if isinstance(layer, VariationalBottleneck):
            mean, spread = layer.statistics(inputs).chunk(2, 1)
            code = Normal(mean, F.softplus(spread))
            penalty = kl_divergence(code, Normal(0.0, 1.0)).sum(1).mean() / math.log(2)
            inputs = layer.decoder(code.mean + code.stddev * noise)
        else:
            inputs = layer(inputs)
    loss = F.cross_entropy(inputs, labels) + BETA * penalty
    return list(torch.autograd.grad(loss, list(victim.parameters()), create_graph=True))


def test_the_update_is_that_of_the_authors_loss() -> None:
    batch, model = exact_batch(2, 3), victim()
    observation = observed(batch, KNOWN)
    noise = drawn(observation)
    assert noise.shape == (2, 3, 256)
    assert float(noise.std()) == pytest.approx(1, rel=0.08)
    for u in range(2):
        expected = reference(model, batch.images[u], batch.labels[u], noise[u])
        for (name, _), value in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(observation.update[name][u], value.detach(), rtol=1e-9, atol=1e-12)


def test_each_client_draws_by_its_own_seed_alone() -> None:
    together, alone = drawn(observed(exact_batch(2, 2), KNOWN)), drawn(observed(exact_batch(1, 2), KNOWN))
    assert torch.equal(together[:1], alone)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0, 0], together[0, 1])


def test_the_divergence_has_its_weight() -> None:
    with_it, without = observed(exact_batch(1, 2)).update, observed(exact_batch(1, 2), beta=0).update
    changed = {name for name, value in with_it.items() if not torch.equal(value, without[name])}
    assert "network.bottleneck.statistics.weight" in changed
    assert "network.bottleneck.decoder.weight" not in changed


def test_known_noise_explains_the_update_and_hidden_noise_is_an_argument() -> None:
    batch = exact_batch(2, 2)
    told, untold = observed(batch, KNOWN), observed(batch)
    assert untold.randomness is None
    likelihood = Density(distance=Cosine())
    known, hidden = likelihood.hypothesis(told), likelihood.hypothesis(untold)
    assert known.hidden is None
    assert hidden.hidden is not None
    assert (hidden.hidden.name, hidden.hidden.shape) == ("noise", (256,))
    assert not hidden.known
    match = known.likelihood(
        known.observation.simulate(batch.images, batch.labels, **known.known), known.observation.update
    )
    assert match.tolist() == pytest.approx([0, 0], abs=1e-12)
    naive = Cosine()(untold.simulate(batch.images, batch.labels), untold.update)
    assert (naive > 1e-3).all()


def test_the_simulation_is_differentiated_in_images_labels_and_noise() -> None:
    batch, model = exact_batch(2, 2), victim()
    hypothesis = Density().hypothesis(observed(batch))
    noise = torch.randn(2, 2, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft = torch.randn(2, 2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).softmax(2)
    leaves = [tensor.clone().requires_grad_() for tensor in (batch.images, soft, noise)]

    def length(update: Update) -> Tensor:
        return torch.stack([value.square().flatten(1).sum(1) for value in update.values()]).sum(0)

    found = torch.autograd.grad(
        length(hypothesis.observation.simulate(leaves[0], leaves[1], noise=leaves[2])).sum(), leaves
    )
    for u in range(2):
        own = [tensor[u].detach().requires_grad_() for tensor in leaves]
        value = torch.stack([part.square().sum() for part in reference(model, *own)]).sum()
        for whole, part in zip(found, torch.autograd.grad(value, own), strict=True):
            assert part.abs().max() > 0
            torch.testing.assert_close(whole[u], part, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("hidden", ["searched", "drawn"])
def test_attacks_search_the_noise_or_draw_it(hidden: str) -> None:
    observation = observed(batch_of(2, 1).to(torch.float64))

    def objective(steps: int) -> Tensor:
        return GradientMatching(
            likelihood=Density(distance=Cosine()),
            search=Adam(steps=steps, rate=0.05),
            labels=Given(),
            hidden=hidden,  # type: ignore[arg-type]
        )(observation).objective

    assert (objective(60) < objective(1)).all()


def test_searching_the_noise_explains_more_than_drawing_it() -> None:
    observation = observed(exact_batch(2, 1), beta=1e-3)
    found = {
        hidden: GradientMatching(
            likelihood=Density(distance=Cosine()),
            search=Adam(steps=100, rate=0.1),
            labels=Given(),
            hidden=hidden,  # type: ignore[arg-type]
        )(observation).objective
        for hidden in ("searched", "drawn")
    }
    assert (found["searched"] < found["drawn"] / 2).all()


def test_the_first_layer_of_the_perceptron_leaks_the_image_all_the_same() -> None:
    """Exactly: more than 100 dB, since the noise comes after it."""
    batch = exact_batch(3, 1)
    observation = FedSGD(precode_mlp(image_shape=SMALL).double(), defense=Precode())(batch)
    errors = (BiasAttack()(observation).images - batch.images).square().flatten(1).mean(1)
    assert (errors < 1e-10).all()


# What it refuses.


def test_a_victim_without_a_bottleneck_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"no variational bottleneck.*precode_mlp"):
        FedSGD(small_victim(), defense=Precode())


def test_local_steps_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="use FedSGD"):
        FedAvg(victim(), steps=2, defense=Precode())


def test_layers_that_are_differentiated_wrongly_are_refused() -> None:
    model = victim()
    model.network.add_module("last", nn.LayerNorm(10))
    with pytest.raises(ConfigurationError, match=r"LayerNorm \(network\.last\)"):
        Precode().check(model, "gradient")


@pytest.mark.parametrize("beta", [-1e-3, math.nan])
def test_a_weight_below_zero_is_refused(beta: float) -> None:
    with pytest.raises(ConfigurationError, match="at least 0"):
        Precode(beta=beta)
