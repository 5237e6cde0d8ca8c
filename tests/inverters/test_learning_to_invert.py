"""The attack: what it answers, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_victim
from safetensors.torch import load_file, save_file
from small_pairs import Shrunk, client
from torch import nn

from gibench.attacks import GradientMatching
from gibench.clients import Client, FedAvg, FedSGD
from gibench.defenses import GaussianNoise, SignCompression
from gibench.errors import GibenchError, RefusalError, ShapeError, ThreatModelError, WeightsError
from gibench.labels import Given
from gibench.likelihoods import Gaussian
from gibench.search import Adam
from gibench.types import Batch, Observation, ThreatModel
from inverters import FeatureSettings, LearningToInvert, fit_inverter
from inverters.card import METADATA, load_inverter

MLP: dict[str, Any] = {"settings": {"hidden": 64}, "features": FeatureSettings(buckets=256), "epochs": 6}
SET: dict[str, Any] = {
    "network": "set",
    "settings": {"model": 16, "heads": 2, "hidden": 16},
    "features": FeatureSettings(buckets=64, tokens=True),
    "batch_sizes": [1, 2],
    "slots": 3,
    "epochs": 1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[str, Path] = {}

    def fit(name: str, of: Client, **arguments: Any) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            options: dict[str, Any] = {"together": 32, "accelerator": "cpu", **arguments}
            made[name] = fit_inverter(client=of, data=Shrunk(), out=folder, **options)[0]  # type: ignore[arg-type]
        return made[name]

    return fit


def observed(of: Client, updates: int = 6, size: int = 1) -> tuple[Batch, Observation]:
    images, labels, ids = Shrunk().split("tune")
    count = updates * size
    batch = Batch(
        images=images[:count].unflatten(0, (updates, size)),
        labels=labels[:count].unflatten(0, (updates, size)),
        image_ids=tuple(tuple(ids[row * size : (row + 1) * size]) for row in range(updates)),
        update_ids=tuple(f"update-{row}" for row in range(updates)),
    )
    return batch, of(batch)


def test_the_answer_is_the_networks(trained: Callable[..., Path]) -> None:
    path = trained("mlp", client(), **MLP)
    batch, observation = observed(client())
    found = LearningToInvert(path=path)(observation)
    loaded = load_inverter(path)
    weights = dict(observation.victim.named_parameters())
    expected = loaded.network(loaded.features()(observation.update, weights)).images
    assert torch.equal(found.images, expected)
    assert found.images.shape == batch.images.shape
    assert not found.gradient_evaluations.any()
    assert found.remarks is None
    floor = (batch.images - Shrunk().split("prior")[0].mean(0)).square().mean()
    assert (found.images - batch.images).square().mean() < floor


def test_a_row_does_not_depend_on_the_others(trained: Callable[..., Path]) -> None:
    attack = LearningToInvert(path=trained("mlp", client(), **MLP))
    _, observation = observed(client())
    together = attack(observation).images
    assert torch.allclose(together[3:4], attack(observation.select([3])).images, atol=1e-6)


def test_float64_changes_the_last_digits_only(trained: Callable[..., Path]) -> None:
    attack = LearningToInvert(path=trained("mlp", client(), **MLP))
    batch, observation = observed(client())
    double = client().double()
    found = attack(double(batch.to(torch.float64))).images
    assert torch.allclose(found.float(), attack(observation).images, atol=1e-4)


def test_a_set_inverter_answers_every_batch_size_and_names_it(trained: Callable[..., Path]) -> None:
    attack = LearningToInvert(path=trained("set", client(), **SET))
    for size in (1, 2, 3):
        batch, observation = observed(client(), size=size)
        found = attack(observation)
        assert found.images.shape == batch.images.shape
    attack.network.exists.bias.data.fill_(100.0)  # type: ignore[union-attr, operator]
    assert attack(observed(client(), size=2)[1]).remarks == ("names 3 images instead of 2",) * 6
    with pytest.raises(RefusalError, match="batches of 1, 2, this client has 4"):
        attack(observed(client(), size=4)[1])


def test_it_is_a_start_for_gradient_matching(trained: Callable[..., Path]) -> None:
    inverter = LearningToInvert(path=trained("mlp", client(), **MLP))
    batch, observation = observed(client())
    start = inverter(observation).images
    hybrid = GradientMatching(
        likelihood=Gaussian(sigma=1.0), search=Adam(steps=30, rate=0.01), labels=Given(), initial=inverter
    )
    found = hybrid(observation).images
    assert (found - batch.images).square().mean() < (start - batch.images).square().mean()


OTHER: dict[str, tuple[Client, int, str]] = {
    "weights": (client(seed=1), 1, "other weights of the victim small"),
    "architecture": (client(victim=small_victim(side=8, batch_norm=False, num_classes=11)), 1, "the parameters"),
    "defense": (client(defense=SignCompression()), 1, "the defense None, this client has SignCompression"),
    "batch size": (client(), 2, "batches of 1, this client has 2"),
    "auxiliary data": (
        FedSGD(
            small_victim(),
            threat_model=ThreatModel(victim="initial", batch_norm="absent", prior_data="out_of_distribution"),
        ),
        1,
        "prior_data",
    ),
    "kind of update": (
        FedAvg(
            small_victim(),
            steps=2,
            threat_model=ThreatModel(
                victim="initial", batch_norm="absent", update="fedavg", prior_data="in_distribution"
            ),
        ),
        1,
        "the kind gradient, this client has fedavg",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_scenario_is_refused_and_named(trained: Callable[..., Path], name: str) -> None:
    other, size, words = OTHER[name]
    attack = LearningToInvert(path=trained("mlp", client(), **MLP))
    with pytest.raises((RefusalError, ThreatModelError), match=words):
        attack(observed(other, size=size)[1])


def test_another_strength_of_the_defense_is_refused(trained: Callable[..., Path]) -> None:
    attack = LearningToInvert(path=trained("noise", client(defense=GaussianNoise(sigma=0.1)), **MLP | {"epochs": 1}))
    attack(observed(client(defense=GaussianNoise(sigma=0.1)))[1])
    with pytest.raises(RefusalError, match=r"GaussianNoise\(sigma=0.1\), this client has GaussianNoise\(sigma=0.2\)"):
        attack(observed(client(defense=GaussianNoise(sigma=0.2)))[1])


def test_other_local_steps_are_refused(trained: Callable[..., Path]) -> None:
    known = ThreatModel(victim="initial", batch_norm="absent", update="fedavg", prior_data="in_distribution")
    clients = [FedAvg(small_victim(), steps=steps, rate=0.5, threat_model=known) for steps in (2, 3)]
    attack = LearningToInvert(path=trained("fedavg", clients[0], **MLP | {"epochs": 1}))
    attack(observed(clients[0])[1])
    with pytest.raises(RefusalError, match="the local steps"):
        attack(observed(clients[1])[1])


def test_weights_that_moved_are_accepted_when_asked(trained: Callable[..., Path]) -> None:
    attack = LearningToInvert(path=trained("mlp", client(), **MLP), moved=True)
    assert attack(observed(client(seed=1))[1]).images.isfinite().all()


def test_the_threat_model_has_to_grant_auxiliary_data(trained: Callable[..., Path]) -> None:
    attack = LearningToInvert(path=trained("mlp", client(), **MLP))
    with pytest.raises(ThreatModelError, match="prior_data"):
        attack(observed(FedSGD(small_victim()))[1])


def test_parameters_that_are_missing_or_extra_are_refused(trained: Callable[..., Path]) -> None:
    attack = LearningToInvert(path=trained("mlp", client(), **MLP))
    _, observation = observed(client())
    attack(observation)
    first = next(iter(observation.update))
    less = {name: value for name, value in observation.update.items() if name != first}
    for update in (less, observation.update | {"extra": torch.zeros(6, 1)}):
        with pytest.raises((ShapeError, RefusalError)):
            attack(observation.model_copy(update={"update": update}))


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "inverter.safetensors")
    with pytest.raises(WeightsError, match="a pickle is never read"):
        LearningToInvert(path=tmp_path / "inverter.safetensors")


def changed(path: Path, folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    card, tensors = json.loads(load_inverter(path).card.model_dump_json()), load_file(path)
    change(card, tensors)
    save_file(tensors, folder / "changed.safetensors", metadata={METADATA: json.dumps(card)})
    return folder / "changed.safetensors"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card, _: card.update(network="evil"), "network"),
        (lambda card, _: card.update(network="convolutional"), "network.draw"),
        (lambda card, _: card["settings"].update(hidden=10**9), "settings.hidden"),
        (lambda card, _: card["settings"].update(hidden="wide"), "settings"),
        (lambda card, _: card.update(extra=1), "extra"),
        (lambda card, _: card.update(version=2), "version"),
        (lambda card, _: card.update(slots=10**9), "slots"),
        (lambda card, _: card.update(image_shape=[3, 16, 8]), "does not fit the network"),
        (lambda _, tensors: tensors.pop("features.mean"), "statistics"),
        (lambda _, tensors: tensors.pop("network.layers.0.bias"), "layers.0.bias"),
        (lambda _, tensors: tensors["network.layers.0.bias"].fill_(torch.nan), "NaN"),
        (lambda _, tensors: tensors.update(more=torch.zeros(1)), "more"),
        (lambda card, _: card["probe"].pop(), "no training writes"),
        (lambda _, tensors: tensors["features.deviation"].zero_(), "no training writes"),
        (lambda _, tensors: tensors.update({"network.layers.0.bias": torch.zeros(64).half()}), "float32"),
    ],
)
def test_files_that_were_tampered_with(
    trained: Callable[..., Path], tmp_path: Path, change: Callable[[Any, Any], Any], words: str
) -> None:
    path = changed(trained("mlp", client(), **MLP), tmp_path, change)
    with pytest.raises(WeightsError, match=words):
        LearningToInvert(path=path)


def test_a_card_that_asks_for_other_features_is_refused(trained: Callable[..., Path], tmp_path: Path) -> None:
    def change(card: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        card["features"]["buckets"] = 10**6

    attack = LearningToInvert(path=changed(trained("mlp", client(), **MLP), tmp_path, change))
    with pytest.raises(GibenchError, match="statistics"):
        attack(observed(client())[1])


def test_a_card_that_names_another_hash_is_refused(trained: Callable[..., Path], tmp_path: Path) -> None:
    def change(card: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        card["features"]["seed"] = 5

    attack = LearningToInvert(path=changed(trained("mlp", client(), **MLP), tmp_path, change))
    with pytest.raises(WeightsError, match="another hash"):
        attack(observed(client())[1])


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_a_run_in_another_precision_is_served(trained: Callable[..., Path], precision: str) -> None:
    """Lightning sets the default type, or autocast, around an attack."""
    attack = LearningToInvert(path=trained("mlp", client(), **MLP))
    expected = attack(observed(client())[1]).images
    attack = LearningToInvert(path=trained("mlp", client(), **MLP))
    if precision == "64-true":
        batch, double = observed(client())[0].to(torch.float64), client().double()
        torch.set_default_dtype(torch.float64)
        try:
            found = attack(double(batch)).images
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            found = attack(observed(client())[1]).images
    assert torch.allclose(found.float(), expected, atol=1e-2)


def test_files_without_a_card(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match="no card"):
        LearningToInvert(path=tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match="there is no inverter"):
        LearningToInvert(path=tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(WeightsError, match="no inverter in safetensors"):
        LearningToInvert(path=tmp_path / "cut.safetensors")
