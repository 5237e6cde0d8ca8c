"""Partial gradient matching against loops over dictionaries."""

from typing import Any

import pytest
import torch
from helpers import batch_of, small_victim
from references import partial as reference

from gibench.attacks import inverting_gradients
from gibench.clients import FedSGD
from gibench.engine import Engine
from gibench.errors import ConfigurationError, RefusalError
from gibench.likelihoods import Cosine, Features, Gaussian, Laplace, Partial
from gibench.likelihoods.products import products
from gibench.types import Update

SHAPES = {"conv1.weight": (3, 2, 2), "conv1.bias": (3,), "conv2.weight": (2, 3), "fc.weight": (4, 5), "fc.bias": (4,)}
CHOICES: dict[str, dict[str, Any]] = {
    "all": {},
    "first two": {"first": 2},
    "last three": {"last": 3},
    "all five of five": {"top": 5},
    "top one": {"top": 1},
    "top three": {"top": 3},
    "a pattern": {"tensors": ["conv*.weight"]},
    "names": {"tensors": ["fc.bias", "conv1.weight"]},
}
NAMES = {"a pattern": ["conv1.weight", "conv2.weight"], "names": ["conv1.weight", "fc.bias"]}


def update(seed: int, rows: int = 4) -> Update:
    """Tensors of other lengths in every row, so that the longest differ."""
    source = torch.Generator().manual_seed(seed)
    options = {"generator": source, "dtype": torch.float64}
    return {
        name: torch.randn(rows, *shape, **options)
        * torch.rand(rows, *[1] * len(shape), **options)
        / torch.Size(shape).numel() ** 0.5
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("weights", ["equal", "linear", "exponential"])
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("name", ["gaussian", "cosine"])
def test_each_row_is_the_formula_from_updates_and_from_products(name: str, choice: str, weights: Any) -> None:
    distance = Gaussian() if name == "gaussian" else Cosine()
    likelihood, simulated, observed = Partial(distance, **CHOICES[choice], weights=weights), update(1), update(2)
    assert likelihood.reads == "products"
    assert likelihood.cancels == distance.cancels
    found = likelihood(simulated, observed)
    torch.testing.assert_close(likelihood.of_products(products(simulated, observed)), found)
    settings = {key: CHOICES[choice].get(key) for key in ("first", "last", "top")}
    sets = set()
    for row in range(4):
        mine, theirs = ({key: value[row] for key, value in each.items()} for each in (simulated, observed))
        names = reference.chosen(theirs, **settings, names=NAMES.get(choice))
        sets.add(tuple(sorted(names)))
        torch.testing.assert_close(found[row], reference.DISTANCES[name](mine, theirs, names, weights))
    assert (len(sets) > 1) == (choice in ("top one", "top three"))


def test_the_absolute_distance_is_weighed_by_roots() -> None:
    simulated, observed = update(1), update(2)
    expected = sum(
        ((5 - place) / 5) ** 0.5 * (simulated[name] - observed[name]).abs().flatten(1).sum(1)
        for place, name in enumerate(observed)
    )
    likelihood = Partial(Laplace(), weights="linear")
    assert likelihood.reads == "update"
    torch.testing.assert_close(likelihood(simulated, observed), expected)


def test_what_is_not_chosen_has_no_derivative() -> None:
    simulated = {name: value.requires_grad_() for name, value in update(1).items()}
    for settings in ({"first": 1}, {"top": 1}):
        value = Partial(Cosine(), **settings)(simulated, update(2)).sum()
        slopes = torch.autograd.grad(value, list(simulated.values()), materialize_grads=True)
        moved = torch.stack([slope.flatten(1).abs().sum(1) > 0 for slope in slopes])
        assert (moved.sum(0) == 1).all()


@pytest.mark.parametrize("backend", ["generic", "rules", "gram"])
def test_back_ends_agree_and_the_private_image_explains_its_part(backend: Any) -> None:
    batch = batch_of(3, 1).to(torch.float64)
    observation = FedSGD(small_victim()).double()(batch)
    partial = Partial(Cosine(), top=2, weights="linear")
    truth = partial(observation.simulate(batch.images, batch.labels), observation.update)
    assert truth.abs().max() < 1e-12
    settings: dict[str, Any] = {"steps": 5, "likelihood": partial}
    found = inverting_gradients(**settings, engine=Engine(backend=backend, compile="off"))(observation)
    again = inverting_gradients(**settings, engine=Engine(backend="generic", compile="off"))(observation)
    torch.testing.assert_close(found.objective, again.objective)
    whole = inverting_gradients(steps=5, engine=Engine(backend="generic", compile="off"))(observation)
    assert (found.objective - whole.objective).abs().min() > 1e-6


def test_parts_of_parts_are_checked_on_what_they_get() -> None:
    observation = FedSGD(small_victim())(batch_of(1, 1))
    assert Partial(Features(Cosine()), last=2).hypothesis(observation).likelihood.reads == "update"
    with pytest.raises(RefusalError, match="feature matching reads a last layer"):
        Partial(Features(Cosine()), first=2).hypothesis(observation)


BAD: dict[str, dict[str, Any]] = {
    "one of tensors, first, last and top": {"first": 1, "top": 2},
    "choose one.": {"tensors": ["a"], "last": 1},
    "first is 0": {"first": 0},
    "top is -1": {"top": -1},
    "tensors is empty": {"tensors": []},
    "weights is 'quadratic'": {"weights": "quadratic"},
}


@pytest.mark.parametrize("words", BAD)
def test_bad_settings_are_named(words: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Partial(Cosine(), **BAD[words])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tensors": ["network.0.*", "fc9*"]}, r"no parameter 'fc9\*'; name some of network.0.weight"),
        ({"first": 5}, "first is 5; the victim has 4 parameter tensors"),
        ({"last": 6}, "last is 6; the victim has 4"),
        ({"top": 7}, "top is 7; the victim has 4"),
    ],
)
def test_what_the_victim_has_not_is_named_on_binding(settings: dict[str, Any], words: str) -> None:
    observation = FedSGD(small_victim())(batch_of(1, 1))
    with pytest.raises(ConfigurationError, match=words):
        Partial(Cosine(), **settings).hypothesis(observation)
    likelihood = Partial(Cosine(), top=4)
    assert likelihood.hypothesis(observation).likelihood is likelihood
