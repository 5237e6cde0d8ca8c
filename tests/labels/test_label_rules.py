"""The label rules against slow references, on real images, and where they must refuse."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import batch_of, fully_connected, small_victim
from hypothesis import given, settings
from hypothesis import strategies as st
from references import labels as reference
from torch import Tensor, nn
from torch.nn import functional as F

import gibench.labels
from gibench.attacks import LabelInference
from gibench.clients import FedAvg, FedSGD
from gibench.data import CIFAR10, Photographs
from gibench.errors import ConfigurationError, RefusalError, ThreatModelError
from gibench.labels import (
    IDLG,
    ILRG,
    LLG,
    BiasCorrected,
    BiasSign,
    Given,
    GradInversionRule,
    LabelSource,
    LLGPlus,
    LLGStar,
    RandomLabels,
)
from gibench.labels.head import ascending
from gibench.labels.ilrg import whole
from gibench.labels.measured import measure
from gibench.seeding import generator
from gibench.types import Batch, Observation, ThreatModel
from gibench.victims import Victim, lenet


class TenColors(Photographs):
    """Data for LLG+: three small images of each of ten classes."""

    image_shape = (3, 8, 8)  # type: ignore[assignment]
    num_classes = 10  # type: ignore[assignment]

    def split(self, name: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:  # type: ignore[override]
        assert name == "prior"
        images = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return images, torch.arange(30) % 10, ()


RULES: dict[str, Callable[[], LabelSource]] = {
    "bias sign": BiasSign,
    "bias-corrected": BiasCorrected,
    "GradInversion": GradInversionRule,
    "iLRG": ILRG,
    "iLRG, shrunk": lambda: ILRG(shrinkage=0.2),
    "LLG": LLG,
    "LLG+": lambda: LLGPlus(auxiliary=TenColors(), repetitions=2),
    "LLG*, zeros": lambda: LLGStar(kind="zeros"),
    "LLG*, ones": lambda: LLGStar(kind="ones"),
    "LLG*, random": lambda: LLGStar(repetitions=2),
    "random": RandomLabels,
}
READS_BIAS = {"bias sign", "bias-corrected", "iLRG", "iLRG, shrunk"}


def threat(**flags: str) -> ThreatModel:
    known = {"victim": "initial", "batch_norm": "absent", "labels": "none", "prior_data": "in_distribution"}
    return ThreatModel.model_validate(known | flags)


def observe(batch: Batch, victim: Victim | None = None, **flags: str) -> Observation:
    return FedSGD(victim or fully_connected(), threat_model=threat(**flags))(batch)


def head_update(observation: Observation, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The last layer's weight and bias gradient of one update."""
    weight, bias = list(observation.update.values())[-2:]
    return weight[row].double().numpy(), bias[row].double().numpy()


@pytest.mark.parametrize("name", RULES)
def test_contract(name: str) -> None:
    """Shapes, range, order, nothing touched, rows independent, the same again."""
    size = 6
    observation = observe(batch_of(4, size))
    update = {key: tensor.clone() for key, tensor in observation.update.items()}
    state = torch.get_rng_state()
    found = RULES[name]()(observation)
    assert found.shape == (4, size)
    assert found.dtype == torch.int64
    assert found.min() >= 0
    assert found.max() < 10
    assert torch.equal(found, found.sort(1).values)
    assert all(torch.equal(update[key], tensor) for key, tensor in observation.update.items())
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(found, RULES[name]()(observation))
    assert torch.equal(found[[2, 0]], RULES[name]()(observation.select([2, 0])))


@pytest.mark.parametrize("name", RULES)
def test_the_order_of_the_private_images_does_not_matter(name: str) -> None:
    batch = batch_of(3, 5)
    other = batch.model_copy(update={"images": batch.images.flip(1), "labels": batch.labels.flip(1)})
    first, second = (
        RULES[name]()(FedSGD(fully_connected(), threat_model=threat()).double()(b.to(torch.float64)))
        for b in (batch, other)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("size", [1, 3, 9])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_rule_is_its_reference(size: int, seed: int) -> None:
    victim = fully_connected(seed=seed)
    observation = observe(batch_of(4, size, seed=seed), victim)
    dummies = [[dummy_gradient(observation, size, label, kind) for label in range(10)] for kind in (0.0, 1.0)]
    found = {name: rule()(observation).tolist() for name, rule in RULES.items()}
    layer = victim.network[-1]
    head = (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
    for row in range(4):
        weight, bias = head_update(observation, row)
        assert found["LLG"][row] == reference.llg(weight, size)
        assert found["LLG*, zeros"][row] == reference.llg_measured(weight, [dummies[0]], size)
        assert found["LLG*, ones"][row] == reference.llg_measured(weight, [dummies[1]], size)
        assert found["bias-corrected"][row] == reference.bias_corrected(bias, size)
        assert found["bias sign"][row] == reference.bias_sign(bias, size)
        assert found["GradInversion"][row] == reference.grad_inversion(weight, size)
        for rule in (ILRG(), ILRG(shrinkage=0.2)):
            expected = reference.ilrg(weight, bias, head, size, shrinkage=rule.shrinkage)
            counts = rule.counts(observation)[row].numpy()
            np.testing.assert_allclose(counts, expected, rtol=1e-6, atol=1e-6)


def dummy_gradient(observation: Observation, size: int, label: int, value: float) -> np.ndarray:
    images = torch.full((1, size, 3, 8, 8), value)
    update = observation.simulate(images, torch.full((1, size), label))
    return np.asarray(list(update.values())[-2][0].double().numpy())


def test_llg_plus_measures_on_batches_of_the_class() -> None:
    """Its impact and offsets against a loop that draws the same images."""
    observation = observe(batch_of(2, 2))
    rule = LLGPlus(auxiliary=TenColors(), repetitions=3)
    draw = rule.images(observation, 2)
    gradients = [
        [
            list(observation.simulate(draw(label, again)[None], torch.full((1, 2), label)).values())[-2][0]
            .double()
            .numpy()
            for label in range(10)
        ]
        for again in range(3)
    ]
    found = rule(observation).tolist()
    for row in range(2):
        assert found[row] == reference.llg_measured(head_update(observation, row)[0], gradients, 2)
    images, labels, _ = TenColors().split("prior")
    drawn = draw(4, 0)
    assert not torch.equal(drawn[0], drawn[1])
    assert all((images[labels == 4] == image).flatten(1).all(1).any() for image in drawn)
    assert draw(4, 0).shape == (2, 3, 8, 8)
    assert rule.images(observation, 7)(4, 0).shape == (7, 3, 8, 8)  # of three: they repeat
    measured = measure(observation, "network.3", draw, repetitions=3)
    assert measured.impact < 0
    assert rule.simulations(observation) == 30


def test_llg_plus_reads_its_data_once_for_each_batch_size() -> None:
    class Counted(TenColors):
        reads = 0

        def split(self, name: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
            self.reads += 1
            return super().split(name)

    data = Counted()
    rule = LLGPlus(auxiliary=data, repetitions=2)
    for size, reads in ((2, 1), (2, 1), (7, 2), (2, 3)):
        observation = observe(batch_of(2, size))
        fresh = LLGPlus(auxiliary=TenColors(), repetitions=2)
        assert torch.equal(rule(observation), fresh(observation))
        draws = [each.images(observation, size) for each in (rule, fresh)]
        assert torch.equal(draws[0](4, 1), draws[1](4, 1))
        assert data.reads == reads
    images, labels, _ = TenColors().split("prior")
    members = (labels == 4).nonzero()[:, 0]
    order = torch.randperm(3, generator=generator("LLG+", 4, 1))
    assert torch.equal(draws[0](4, 1), images[members[order[:2]]])


@given(st.lists(st.floats(-6, 12), min_size=2, max_size=4), st.integers(1, 7))
@settings(max_examples=60)
def test_whole_numbers_are_the_nearest_that_sum_to_the_batch(counts: list[float], size: int) -> None:
    found = whole(torch.tensor([counts], dtype=torch.float64), size)
    assert found.sum() == size
    assert found.min() >= 0
    distance = ((found[0].double() - torch.tensor(counts, dtype=torch.float64).clamp(0, size)) ** 2).sum().item()
    assert distance == pytest.approx(reference.nearest_whole(np.array(counts), size), abs=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=4), st.integers(1, 9))
@settings(max_examples=60)
def test_greedy_counts_sum_to_the_batch_whatever_the_update(bias: list[float], size: int) -> None:
    """Noise may leave no class negative, or more than B of them."""
    layer = nn.Linear(3, 4)
    victim = Victim(
        nn.Sequential(nn.Flatten(), layer),
        architecture="x",
        image_shape=(3, 1, 1),
        num_classes=4,
        initialization="default",
    )
    batch = Batch(
        images=torch.rand(1, size, 3, 1, 1),
        labels=torch.zeros(1, size, dtype=torch.int64),
        image_ids=(tuple(str(i) for i in range(size)),),
        update_ids=("u",),
    )
    observation = observe(batch, victim)
    values = torch.tensor(bias, dtype=torch.float64)
    update = {"network.1.weight": values[None, :, None].expand(1, 4, 3), "network.1.bias": values[None]}
    observation = observation.model_copy(update={"update": update})
    array = values.numpy()
    assert BiasCorrected()(observation)[0].tolist() == reference.bias_corrected(array, size)
    assert BiasSign()(observation)[0].tolist() == reference.bias_sign(array, size)
    assert LLG()(observation).shape == ILRG()(observation).shape == (1, size)


def test_labels_are_written_out_in_ascending_order() -> None:
    assert ascending(torch.tensor([[2, 0, 1], [0, 3, 0]])).tolist() == [[0, 0, 2], [1, 1, 1]]


EXACT = ["bias sign", "bias-corrected", "GradInversion", "iLRG", "iLRG, shrunk", "LLG", "LLG*, zeros", "LLG*, ones"]


@pytest.mark.parametrize("name", EXACT)
def test_one_image_is_read_exactly(name: str, cifar10_root: object) -> None:
    """100 CIFAR-10 images on LeNet at its random start."""
    batch = next(iter(CIFAR10(cifar10_root, updates=100, together=100).predict_dataloader()))  # type: ignore[arg-type]
    assert torch.equal(RULES[name]()(observe(batch, lenet())), batch.labels)


@pytest.mark.parametrize("size", [64, 256])
def test_ilrg_counts_large_batches_on_an_untrained_net(size: int, cifar10_root: object) -> None:
    """Natural batches of CIFAR-10; LeNet with PyTorch's initialization, whose probabilities hardly differ."""
    data = CIFAR10(cifar10_root, batch_size=size, updates=4)  # type: ignore[arg-type]
    batch = next(iter(data.predict_dataloader()))
    observation = observe(batch, lenet(initialization="default"))
    assert torch.equal(ILRG()(observation), batch.labels.sort(1).values)
    missed = [1 - (batch.labels.sort(1).values == RandomLabels()(observation)).double().mean()]
    assert missed[0] > 0.1  # the test can fail


def test_shrinkage_repairs_a_vanishing_bias_gradient(cifar10_root: object) -> None:
    """The LeNet of DLG, whose probabilities are skewed; 16 batches of 64."""
    batch = next(iter(CIFAR10(cifar10_root, batch_size=64, updates=16).predict_dataloader()))  # type: ignore[arg-type]
    observation = observe(batch, lenet())
    true = F.one_hot(batch.labels, 10).sum(1)
    published, ours = (
        1 - (F.one_hot(rule(observation), 10).sum(1) - true).abs().sum(1).double() / 128
        for rule in (ILRG(), ILRG(shrinkage=0.2))
    )
    assert ours.min() > 0.95
    assert ours.mean() > published.mean() + 0.02


def test_the_sign_of_the_bias_never_names_an_absent_class() -> None:
    batch = batch_of(20, 4)
    found = BiasSign()(observe(batch, small_victim()))
    for row, labels in zip(found.tolist(), batch.labels.tolist(), strict=True):
        assert set(row) <= set(labels)


def test_greedy_rules_do_not_need_the_length_of_the_update() -> None:
    observation = observe(batch_of(4, 7))
    scaled = {name: 0.01 * tensor for name, tensor in observation.update.items()}
    longer = observation.model_copy(update={"update": scaled})
    for rule in (LLG(), BiasCorrected(), BiasSign(), GradInversionRule()):
        assert torch.equal(rule(observation), rule(longer))


def averaged(steps: int, local_steps: str = "known") -> Observation:
    known = threat(update="fedavg", local_steps=local_steps)
    client = FedAvg(fully_connected(), steps=steps, local_batch_size=2, rate=0.05, threat_model=known)
    return client(batch_of(3, 4))


def test_fedavg_updates() -> None:
    """Rules that need no scale serve them, those that measure simulate them, iLRG says no."""
    observation = averaged(2)
    for name in ("LLG", "bias-corrected", "bias sign", "LLG*, zeros", "LLG+"):
        assert RULES[name]()(observation).shape == (3, 4)
    with pytest.raises(ThreatModelError, match=r"ILRG needs threat_model\.update to be 'gradient'"):
        ILRG()(observation)
    with pytest.raises(ThreatModelError, match="local_steps"):
        LLGStar()(averaged(2, "unknown"))


def headless(*, bias: bool) -> Victim:
    layers = [nn.Flatten(), nn.Linear(192, 10, bias=False)] if bias else [nn.Conv2d(3, 10, 8), nn.Flatten()]
    return Victim(
        nn.Sequential(*layers), architecture="odd", image_shape=(3, 8, 8), num_classes=10, initialization="default"
    )


@pytest.mark.parametrize("name", sorted(set(RULES) - {"random"}))
def test_a_victim_without_a_fitting_head_is_refused(name: str) -> None:
    with pytest.raises(RefusalError, match="linear"):
        RULES[name]()(observe(batch_of(1, 2), headless(bias=False)))
    observation = observe(batch_of(1, 2), headless(bias=True))
    if name in READS_BIAS:
        with pytest.raises(RefusalError, match=r"bias of the last linear layer, and network\.1 has none"):
            RULES[name]()(observation)
    else:
        RULES[name]()(observation)


@pytest.mark.parametrize("name", RULES)
def test_a_hidden_batch_size_is_an_error(name: str) -> None:
    observation = observe(batch_of(1, 2), batch_size="unknown")
    with pytest.raises(ThreatModelError, match="batch_size"):
        RULES[name]()(observation)
    with pytest.raises(ThreatModelError, match="batch_size"):
        LabelInference(labels=RULES[name]()).check(threat(batch_size="unknown"))


def test_grad_inversion_names_a_class_once() -> None:
    with pytest.raises(RefusalError, match="10 classes for 11 images"):
        GradInversionRule()(observe(batch_of(1, 11)))


def test_llg_plus_needs_images_from_elsewhere() -> None:
    with pytest.raises(ThreatModelError, match="prior_data"):
        RULES["LLG+"]()(observe(batch_of(1, 2), prior_data="none"))
    with pytest.raises(ConfigurationError, match="auxiliary data has images"):
        LLGPlus(auxiliary=Photographs())(observe(batch_of(1, 2)))


@pytest.mark.parametrize(
    "build",
    [
        lambda: ILRG(alpha=0.0),
        lambda: ILRG(shrinkage=-1.0),
        lambda: LLGStar(kind="gray"),  # type: ignore[arg-type]
        lambda: LLGStar(repetitions=0),
        lambda: LLGPlus(auxiliary=TenColors(), repetitions=0),
        lambda: LLGPlus(auxiliary=object()),  # type: ignore[arg-type]
        lambda: LabelInference(labels=Given()),
    ],
)
def test_settings_that_make_no_sense(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        build()


def test_label_inference_answers_gray_and_counts_what_it_simulates() -> None:
    observation = observe(batch_of(3, 2))
    found = LabelInference(labels=LLGStar(kind="zeros"))(observation)
    assert (found.images == 0.5).all()
    assert found.labels is not None
    assert torch.equal(found.labels, LLGStar(kind="zeros")(observation))
    assert found.gradient_evaluations.tolist() == [10] * 3
    assert LabelInference(labels=LLG())(observation).gradient_evaluations.tolist() == [0] * 3


def test_random_labels_depend_on_the_seed_of_the_update() -> None:
    observation = observe(batch_of(40, 50))
    found = RandomLabels()(observation)
    assert not torch.equal(found[0], found[1])
    counts = found.flatten().bincount(minlength=10)
    assert counts.min() > 130  # of 200 each on average
    assert counts.max() < 270


def test_every_rule_is_in_the_table() -> None:
    others = {"LabelSource", "Given", "IDLG"}
    assert {type(rule()).__name__ for rule in RULES.values()} == set(gibench.labels.__all__) - others
    assert IDLG.infers
