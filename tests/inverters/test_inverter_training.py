"""Training: it learns, it resumes exactly, and what does not fit is said first."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from helpers import small_victim
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from small_pairs import Shrunk, client

from gibench.defenses import GaussianNoise
from gibench.errors import ConfigurationError, NonFiniteError, WeightsError
from gibench.victims.offline import OfflineCost, read_cost
from inverters import FeatureSettings, InverterTraining, fit_inverter
from inverters.card import Card, load_inverter

FAST: dict[str, Any] = {
    "network": "mlp",
    "settings": {"hidden": 64},
    "features": FeatureSettings(buckets=256),
    "epochs": 4,
    "together": 32,
    "accelerator": "cpu",
}


def fit(out: Path, **changes: Any) -> Path:
    arguments = FAST | {"data": Shrunk(), "out": out} | changes
    if "clients" not in arguments:
        arguments.setdefault("client", client())
    return fit_inverter(**arguments)[0]


def card(path: Path) -> Card:
    return load_inverter(path).card


def cost(path: Path) -> OfflineCost:
    found = read_cost(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert found is not None
    assert found.seconds > 0
    return found


def test_it_beats_the_mean_image(tmp_path: Path) -> None:
    found = card(fit(tmp_path, epochs=25)).training
    images = Shrunk().split("prior")[0]
    held_out = Shrunk().split("tune")[0]
    floor = (-10 * (held_out - images.mean(0)).square().flatten(1).mean(1).log10()).mean()
    assert found["tune_psnr_b1"] > floor + 3


def test_the_card_says_what_it_was_trained_for(tmp_path: Path) -> None:
    found = card(fit(tmp_path, client=client(defense=GaussianNoise(sigma=0.1)), epochs=1))
    assert (found.network, found.settings, found.batch_sizes, found.slots) == ("mlp", {"hidden": 64}, [1], 1)
    assert (found.architecture, found.update, found.data) == ("small", "gradient", "shrunk")
    assert found.defense == "GaussianNoise(sigma=0.1)"
    assert found.features.buckets == 256
    assert found.training["epochs"] == 1


def test_the_same_call_again_returns_the_file(tmp_path: Path) -> None:
    file = fit(tmp_path, epochs=1)
    before = file.stat().st_mtime_ns
    assert fit(tmp_path, epochs=1) == file
    assert file.stat().st_mtime_ns == before
    with pytest.raises(ConfigurationError, match="training with other settings"):
        fit(tmp_path, epochs=2)


@pytest.mark.parametrize("network", ["mlp", "set"])
def test_a_killed_training_continues_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str) -> None:
    changes: dict[str, Any] = {"network": network, "client": client(defense=GaussianNoise(sigma=0.01))}
    if network == "set":
        changes |= {"settings": {"model": 16, "heads": 2, "hidden": 16}, "batch_sizes": [1, 2]}
        changes["features"] = FeatureSettings(buckets=64, tokens=True)
    whole = fit(tmp_path / "whole", **changes)
    original = InverterTraining.training_step

    def interrupt(self: InverterTraining, pair: Any, index: int) -> torch.Tensor:
        if self.current_epoch == 2:
            raise RuntimeError("killed")
        return original(self, pair, index)

    with monkeypatch.context() as patched:
        patched.setattr(InverterTraining, "training_step", interrupt)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path / "cut", **changes)
    assert (tmp_path / "cut" / "resume.ckpt").exists()
    assert fit(tmp_path / "cut", **changes).read_bytes() == whole.read_bytes()
    assert not (tmp_path / "cut" / "resume.ckpt").exists()
    first, second = cost(whole), cost(tmp_path / "cut" / whole.name)
    assert (first.images, first.steps, first.examples) == (second.images, second.steps, second.examples)
    assert first.examples == first.steps * 32


def test_a_training_that_had_stopped_early_and_was_killed_is_only_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    changes: dict[str, Any] = {"epochs": 20, "patience": 1, "learning_rate": 0.3}
    whole = fit(tmp_path / "whole", **changes)
    with monkeypatch.context() as patched:
        patched.setattr("inverters.fitting.save_inverter", killed)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path / "cut", **changes)
    assert fit(tmp_path / "cut", **changes).read_bytes() == whole.read_bytes()
    assert card(whole).training["epoch"] < 18


def test_training_stops_where_the_tune_split_no_longer_gains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    original = InverterTraining.on_validation_epoch_end

    def worse(self: InverterTraining) -> None:
        if not self.trainer.sanity_checking:
            trained.append(self.current_epoch)
            self._told = [(size, float(len(trained)), values, exact) for size, _, values, exact in self._told]
        original(self)

    monkeypatch.setattr(InverterTraining, "on_validation_epoch_end", worse)
    found = card(fit(tmp_path, epochs=20, patience=2)).training
    assert trained == [0, 1, 2]
    assert found["epoch"] == 0


def test_one_network_for_several_batch_sizes(tmp_path: Path) -> None:
    found = card(
        fit(
            tmp_path,
            network="set",
            settings={"model": 32, "heads": 2, "hidden": 64},
            features=FeatureSettings(buckets=64, tokens=True, relative=True),
            batch_sizes=[1, 4],
            slots=5,
            existence=1.0,
            epochs=12,
        )
    )
    assert (found.slots, found.batch_sizes) == (5, [1, 4])
    assert found.training["tune_count_b1"] + found.training["tune_count_b4"] > 1.8


def test_true_keeps_the_pairs_in_the_folder_of_the_training(tmp_path: Path) -> None:
    inside = fit(tmp_path / "inside", cache=True, epochs=1)
    named = fit(tmp_path / "named", cache=tmp_path / "elsewhere", epochs=1)
    kept = sorted((tmp_path / "inside" / "pairs").iterdir())
    assert [path.name for path in kept] == [path.name for path in sorted((tmp_path / "elsewhere").iterdir())] != []
    assert inside.read_bytes() == named.read_bytes()
    without = fit(tmp_path / "without", cache=False, epochs=1)
    assert not (tmp_path / "without" / "pairs").exists()
    assert card(inside).training["cached"]
    assert not card(without).training["cached"]


def test_fine_tuning_starts_from_another_inverter(tmp_path: Path) -> None:
    first = fit(tmp_path / "first")
    moved = client(seed=1)
    changes = {"client": moved, "features": None, "epochs": 1, "images": 64, "learning_rate": 1e-9}
    changes["cache"] = tmp_path / "pairs"
    second = fit(tmp_path / "second", start=first, **changes)
    assert cost(second).seconds_before == cost(first).seconds
    before, after = load_file(first), load_file(second)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert card(second).victims != card(first).victims
    assert card(second).training["images"] == 64


def test_an_inverter_for_weights_that_move(tmp_path: Path) -> None:
    found = card(fit(tmp_path, clients=[client(), client(seed=1)], epochs=1))
    assert len(set(found.victims)) == 2


def test_a_setting_that_changes_the_result_is_another_training(tmp_path: Path) -> None:
    fit(tmp_path / "out", epochs=1)
    for change in ({"tune": 32}, {"cache": tmp_path / "pairs"}, {"images": 99}, {"origin": "out_of_distribution"}):
        with pytest.raises(ConfigurationError, match="training with other settings"):
            fit(tmp_path / "out", epochs=1, **change)


def test_the_published_schedule() -> None:
    module = InverterTraining(torch.nn.Linear(1, 1), milestones=[0.75])  # type: ignore[arg-type]
    module.trainer = Trainer(max_epochs=4, accelerator="cpu", logger=False, enable_checkpointing=False)
    module.trainer.fit_loop.setup_data = lambda: None  # type: ignore[method-assign]
    module.trainer.fit_loop.max_batches = 10
    schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert list(schedule.milestones) == [30]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"client": None}, "name the client"),
        ({"clients": [client()], "client": client()}, "name the client"),
        ({"clients": [client(), client(defense=GaussianNoise(sigma=0.1))]}, "only weights may differ"),
        ({"batch_sizes": [1, 2]}, "choose 'set'"),
        ({"network": "set", "batch_sizes": [3], "slots": 2}, "slots is 2"),
        ({"epochs": 0}, "epochs 0"),
        ({"settings": {"depth": 3}}, "depth"),
        ({"client": client(victim=small_victim(num_classes=2))}, "set the victim's image_shape"),
    ],
)
def test_bad_settings_come_before_compute(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        fit(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_start_that_does_not_fit(tmp_path: Path) -> None:
    first = fit(tmp_path / "first", epochs=1)
    with pytest.raises(ConfigurationError, match="keeps its features"):
        fit(tmp_path / "out", start=first)
    with pytest.raises(ConfigurationError, match="batches of 1, not of"):
        fit(tmp_path / "out", start=first, features=None, batch_sizes=[2])
    with pytest.raises(WeightsError, match="no inverter"):
        fit(tmp_path / "out", start=tmp_path / "absent", features=None)


def test_weights_and_biases_gets_metrics_and_pictures(tmp_path: Path) -> None:
    fit(tmp_path, epochs=1, logger="wandb-offline")
    wandb.finish()  # as the end of the process would
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/tune/*.png"))) == 16


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="learning_rate"):
        fit(tmp_path, learning_rate=1e30, settings={"hidden": 64, "sigmoid": False})
