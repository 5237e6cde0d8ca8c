"""GIML: the outer step against a loop with copies, a stream without images, exact resumption, and that it learns."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SmallGenerator, batch_of, small_victim
from references import giml as reference
from small_images import Shrunk, fit
from torch import Tensor

from generators import DCGAN, fit_giml, load_generator, meta_learning
from generators.card import build, open_generator
from generators.meta_learning import GIMLTraining, Moves, Sent, search_weights
from gibench.attacks import GradientMatching, gias
from gibench.clients import Client, FedSGD
from gibench.engine import Engine
from gibench.errors import ConfigurationError, GibenchError, NonFiniteError, ThreatModelError
from gibench.labels import BiasSign
from gibench.metrics import psnr
from gibench.search.generator import Generator
from gibench.seeding import derive, normal_rows
from gibench.types import Batch, Observation, ThreatModel

KNOWN = ThreatModel(victim="initial", batch_norm="absent")
VAE: dict[str, Any] = {"model": "vae", "settings": {"widths": [4, 8], "latent": 8}}
FAST: dict[str, Any] = {
    **VAE,
    "rounds": 4,
    "together": 2,
    "latent_steps": 3,
    "weight_steps": 2,
    "project": 0,
    "every": 3,
    "accelerator": "cpu",
}


def learn(out: Path, client: Client | None = None, **changes: Any) -> Path:
    (file,) = fit_giml(**{"client": client or FedSGD(small_victim()), "data": Shrunk(), "out": out, **FAST, **changes})
    return file


class Forgetful(FedSGD):
    """A client that overwrites its images once its update is sent, or one that does not."""

    forgets = True

    def forward(self, batch: Batch) -> Observation:
        observation = super().forward(batch)
        if self.forgets:
            batch.images.fill_(torch.nan)
        return observation


def attack(made: Generator, **changes: Any) -> GradientMatching:
    settings = {"latent_steps": 7, "latent_rate": 0.05, "weight_steps": 5, "weight_rate": 0.01, "tv": 0.0}
    return gias(generator=made, **{**settings, "latent_weight": 0.01, "restarts": 2, **changes})  # type: ignore[arg-type]


def training(monkeypatch: pytest.MonkeyPatch, out: Path, made: Generator, **changes: Any) -> GIMLTraining:
    """Without Lightning around it."""
    module = GIMLTraining(made, lambda own: attack(own, **changes), meta_rate=0.02, rounds=9, every=9, out=out, seed=0)
    optimizer = module.configure_optimizers()
    monkeypatch.setattr(module, "optimizers", lambda: optimizer)
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    return module


def test_rounds_are_those_of_a_loop_with_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client = FedSGD(small_victim(), threat_model=KNOWN).double()
    module = training(monkeypatch, tmp_path, SmallGenerator().double())
    slow = SmallGenerator().double()
    outer = reference.Outer(slow, 0.02)
    for number in range(2):
        observation = client(batch_of(2, 1, seed=number).to(torch.float64))
        found = []
        for update, seed in enumerate(observation.seeds):
            starts = [normal_rows((1, 6), [derive(seed, "restart", each)], "latent")[0] for each in range(2)]
            found.append(
                reference.found_weights(
                    slow,
                    starts,
                    observation.labels[update],  # type: ignore[index]
                    client.victim,
                    {name: value[update] for name, value in observation.update.items()},
                    steps=(7, 5),
                    rates=(0.05, 0.01),
                    latent_weight=0.01,
                )
            )
        outer.step(found)
        module.training_step(Sent(observation.seeds, observation), 0)
        for fast, expected in zip(module.generator.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(fast, expected, rtol=0, atol=1e-7)
    assert module.evaluations == 2 * 2 * 2 * 12
    for name, buffer in slow.named_buffers():
        assert torch.equal(buffer, dict(module.generator.named_buffers())[name])


def test_every_image_of_a_batch_counts_and_memory_changes_nothing() -> None:
    observation = FedSGD(small_victim(), threat_model=KNOWN).double()(batch_of(3, 2).to(torch.float64))
    whole = search_weights(attack(SmallGenerator().double()), observation)
    made = attack(SmallGenerator().double())
    made.rows_at_once = lambda *_: 2  # type: ignore[method-assign]
    parts = search_weights(made, observation)
    assert whole.weights.shape == (3, 2, sum(each.numel() for each in SmallGenerator().parameters()))
    torch.testing.assert_close(parts.weights, whole.weights, rtol=0, atol=1e-9)
    torch.testing.assert_close(parts.match, whole.match)
    assert parts.evaluations == whole.evaluations


def test_a_failed_search_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = training(monkeypatch, tmp_path, SmallGenerator())
    observation = FedSGD(small_victim(), threat_model=KNOWN)(batch_of(2, 1))
    found = search_weights(attack(SmallGenerator()), observation)
    asked: list[Tensor] = []
    monkeypatch.setattr(module, "step_towards", asked.append)
    for failed in (0, 1):
        match = found.match.clone()
        match[failed] = torch.inf
        monkeypatch.setattr(meta_learning, "search_weights", lambda *_, match=match: found._replace(match=match))
        module.training_step(Sent(observation.seeds, observation), 0)
        assert torch.equal(asked[-1], found.weights[1 - failed, 0])
    none = Moves(found.weights, torch.full((2,), torch.inf), 0)
    monkeypatch.setattr(meta_learning, "search_weights", lambda *_: none)
    with pytest.raises(NonFiniteError, match="round 2"):
        module.training_step(Sent(observation.seeds, observation), 0)


def test_a_killed_training_continues_exactly_and_the_images_are_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learn(tmp_path / "whole", Forgetful(small_victim()))
    original = GIMLTraining.training_step

    def interrupt(self: GIMLTraining, sent: Any, index: int) -> None:
        assert type(sent.observation) is Observation
        if self.done == 2:
            raise RuntimeError("killed")
        original(self, sent, index)

    monkeypatch.setattr(Forgetful, "forgets", False)
    learns = Forgetful(small_victim())
    with monkeypatch.context() as patched:
        patched.setattr(GIMLTraining, "training_step", interrupt)
        with pytest.raises(RuntimeError, match="killed"):
            learn(tmp_path / "cut", learns)
    assert (tmp_path / "cut" / "resume.ckpt").exists()
    assert learn(tmp_path / "cut", learns).read_bytes() == whole.read_bytes()
    assert not (tmp_path / "cut" / "resume.ckpt").exists()
    pictures = sorted((tmp_path / "whole" / "samples").glob("*.png"))
    assert [path.stem for path in pictures] == ["round_00000", "round_00003", "round_00004"]
    for path in pictures:
        assert (tmp_path / "cut" / "samples" / path.name).read_bytes() == path.read_bytes()
    assert pictures[0].read_bytes() != pictures[-1].read_bytes()

    cost = json.loads((tmp_path / "cut" / "cost.json").read_text())
    assert (cost["images"], cost["steps"], cost["examples"]) == (0, 4, 8)
    card, generator = open_generator(whole)
    assert (card.origin, generator.origin, card.data) == ("updates", None, "shrunk")
    assert card.training["gradient_evaluations"] == 4 * 2 * 5
    assert card.training["client"]["threat_model"]["prior_data"] == "none"
    attack(generator).check(KNOWN)  # which grants no images

    before = whole.stat().st_mtime_ns
    assert learn(tmp_path / "whole", learns).stat().st_mtime_ns == before
    for change in ({"seed": 1}, {"tv": 0.1}, {"client": Forgetful(small_victim(seed=1))}):
        with pytest.raises(ConfigurationError, match="training with other settings"):
            learn(tmp_path / "whole", **{"client": learns, **change})


def test_the_learned_generator_serves_new_updates_better(tmp_path: Path) -> None:
    client, model = FedSGD(small_victim()), {"model": "vae", "settings": {"widths": [8, 16], "latent": 16}}
    changes = {"latent_steps": 15, "latent_rate": 0.1, "weight_steps": 10, "weight_rate": 5e-3, "meta_rate": 0.02}
    learned = load_generator(learn(tmp_path, client, **{**model, **changes, "rounds": 6, "together": 3, "tv": 0.0}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("generator", 0))
        untrained = build("vae", {**model["settings"], "image_shape": [3, 8, 8]})  # type: ignore[dict-item]
    images, labels, ids = (each[:8] for each in Shrunk().split("tune"))
    batch = Batch(
        images=images[:, None], labels=labels[:, None], image_ids=tuple((name,) for name in ids), update_ids=ids
    )
    observation = client(batch)

    def quality(generator: Generator) -> tuple[float, float]:
        found = gias(
            generator=generator, latent_steps=20, latent_rate=0.1, weight_steps=10, weight_rate=5e-3, restarts=1
        )(observation)
        return float(psnr(found.images[:, 0], images).mean()), float(found.objective.mean())

    (before, far), (after, near) = quality(untrained), quality(learned)
    assert after > before + 1
    assert near < 0.9 * far


def test_a_generator_of_images_is_learned_on(tmp_path: Path) -> None:
    start = fit(tmp_path / "images", "dcgan", steps=1)
    granted = FedSGD(small_victim(), threat_model=KNOWN.model_copy(update={"prior_data": "in_distribution"}))
    changes: dict[str, Any] = {"start": start, "model": "dcgan", "settings": None, "rounds": 1}
    with pytest.raises(ThreatModelError, match="prior_data"):
        learn(tmp_path / "none", **changes)
    with pytest.raises(ConfigurationError, match="is a 'dcgan'"):
        learn(tmp_path / "none", granted, **{**changes, "model": "vae"})
    larger = {**changes, "start": "vae_photographs_tiny.safetensors", "model": "vae"}
    with pytest.raises(ConfigurationError, match="resample"):
        learn(tmp_path / "none", granted, **larger)
    assert not (tmp_path / "none").exists()
    card, learned = open_generator(learn(tmp_path / "out", granted, **changes))
    assert card.origin == learned.origin == "in_distribution"
    assert json.loads((tmp_path / "out" / "cost.json").read_text())["seconds_before"] > 0
    first = load_generator(start)
    for (name, value), before in zip(learned.state_dict().items(), first.state_dict().values(), strict=True):
        assert torch.equal(value, before) == (name.rsplit(".")[-1] in ("running_mean", "running_var") or not value.ndim)


def test_labels_may_be_inferred_and_an_untrained_dcgan_knows_its_statistics(tmp_path: Path) -> None:
    hidden = FedSGD(small_victim(), threat_model=KNOWN.model_copy(update={"labels": "none"}))
    changes: dict[str, Any] = {"model": "dcgan", "settings": {"width": 4, "latent": 5}, "rounds": 1, "images": 3}
    with pytest.raises(ThreatModelError, match="labels"):
        learn(tmp_path / "none", hidden, **changes)
    file = learn(tmp_path / "out", hidden, **changes, labels=BiasSign(), engine=Engine(backend="rules"), project=1)
    card, found = open_generator(file)
    assert isinstance(found, DCGAN)
    assert card.training["labels"] == "BiasSign"
    assert card.training["images"] == 3
    assert card.training["range_limit_psnr"] > 0
    assert float(found.main[1].running_var.max()) < 0.1  # of maps of weights N(0, 0.02); 1 if nobody measured


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "at least 1"),
        ({"weight_steps": 0}, "weight_steps"),
        ({"latent_steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"meta_rate": 0.0}, "meta_rate"),
        ({"weight_rate": -1.0}, "rate"),
        ({"tv": -1.0}, "weight"),
        ({"latent_weight": -1.0}, "latent"),
        ({"project": -1}, "project"),
        ({"model": "biggan"}, "no generator 'biggan'"),
        ({"settings": {"depth": 3}}, "depth"),
        ({"settings": {"image_shape": [3, 8, 8]}}, "come from the data"),
        ({"client": FedSGD(small_victim(side=16))}, "image_shape"),
    ],
)
def test_bad_settings_come_before_compute(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(GibenchError, match=words):
        learn(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
