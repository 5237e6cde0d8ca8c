"""Training: it learns, it resumes exactly, and what does not fit is said first."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from PIL import Image
from safetensors.torch import load_file
from small_images import FAST, KINDS, Broken, Shrunk, fit, mean_image_psnr
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from generators import (
    DCGAN,
    DCGANDiscriminator,
    GANSettings,
    GANTraining,
    VAEDecoder,
    VAEEncoder,
    VAESettings,
    VAETraining,
    fit_generator,
)
from generators.card import MODELS, Card, open_generator
from generators.fitting import Steps
from generators.sample_grids import latents_for
from generators.training import GeneratorTraining
from gibench.errors import ConfigurationError, NonFiniteError
from gibench.search.generator import Generator


def card(path: Path) -> Card:
    return open_generator(path)[0]


def test_a_vae_beats_the_mean_image(tmp_path: Path) -> None:
    file = fit(tmp_path, steps=400, every=400, together=32, tune=119)
    assert card(file).training["tune_psnr"] > mean_image_psnr() + 3


def test_the_card_tells_the_range_limit(tmp_path: Path) -> None:
    found = card(fit(tmp_path, steps=100, every=100, project=2)).training
    assert found["range_limit_psnr"] > mean_image_psnr()
    assert found["range_limit_images"] == 2


@pytest.mark.parametrize("loss", ["non_saturating", pytest.param("hinge", marks=pytest.mark.slow)])
def test_a_gan_comes_nearer_to_the_images(tmp_path: Path, loss: Any) -> None:
    """In mean and covariance, the parts of a Fréchet distance on pixels."""

    def distance(steps: int) -> float:
        gan = GANSettings(loss=loss, settings={"width": 8, "normalization": "spectral"})
        changes = {"steps": steps, "every": steps, "gan": gan, "learning_rate": 2e-3, "decay": 0.9}
        _, generator = open_generator(fit(tmp_path / str(steps), "dcgan", **changes))
        drawn = generator(*latents_for(generator, 500, 0)).flatten(1)
        real = Shrunk().split("tune").images.flatten(1)
        return float((drawn.mean(0) - real.mean(0)).norm() + (drawn.T.cov() - real.T.cov()).norm())

    assert distance(200) < 0.6 * distance(1)


@pytest.mark.parametrize("kind", [*KINDS, "several steps"])
def test_a_killed_training_continues_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    changes: dict[str, Any] = {}
    if kind == "several steps":
        kind = "dcgan"
        changes["gan"] = GANSettings(loss="hinge", settings={"width": 8, "normalization": "spectral"}, steps=3)
    whole = fit(tmp_path / "whole", kind, **changes)
    original = GeneratorTraining.training_step

    def interrupt(self: GeneratorTraining, batch: Any, index: int) -> None:
        if self.done == 5:
            raise RuntimeError("killed")
        original(self, batch, index)

    with monkeypatch.context() as patched:
        patched.setattr(GeneratorTraining, "training_step", interrupt)
        with pytest.raises(RuntimeError, match="killed"):
            fit(tmp_path / "cut", kind, **changes)
    assert (tmp_path / "cut" / "resume.ckpt").exists()
    assert fit(tmp_path / "cut", kind, **changes).read_bytes() == whole.read_bytes()
    assert not (tmp_path / "cut" / "resume.ckpt").exists()
    for picture in (tmp_path / "whole").rglob("*.png"):
        assert (tmp_path / "cut" / picture.relative_to(tmp_path / "whole")).read_bytes() == picture.read_bytes()


def test_pictures_and_log_as_it_goes(tmp_path: Path) -> None:
    fit(tmp_path, tune=40)
    for name in ("samples", "reconstructions"):
        pictures = sorted((tmp_path / name).glob("*.png"))
        assert [path.stem for path in pictures] == [f"step_{step:05d}" for step in (0, 2, 4, 6, 7)]
        assert Image.open(pictures[0]).size == (128, 128)
    with next((tmp_path / "log").rglob("metrics.csv")).open() as file:
        assert any(row["tune_psnr"] for row in csv.DictReader(file))


def test_the_same_call_again_returns_the_file(tmp_path: Path) -> None:
    file = fit(tmp_path)
    before = file.stat().st_mtime_ns
    assert fit(tmp_path) == file
    assert file.stat().st_mtime_ns == before
    for change in ({"seed": 1}, {"flips": False}, {"images": 99}, {"vae": VAESettings(beta=1)}):
        with pytest.raises(ConfigurationError, match="training with other settings"):
            fit(tmp_path, **change)


def test_the_card_says_what_it_was_trained_on(tmp_path: Path) -> None:
    found = card(fit(tmp_path, "dcgan", images=50, storage="float16", origin="out_of_distribution"))
    assert (found.model, found.data, found.origin) == ("dcgan", "shrunk", "out_of_distribution")
    assert found.settings == {"image_shape": [3, 8, 8], "width": 8, "latent": 16}
    assert found.training["images"] == 50
    assert found.training["gan"]["loss"] == "non_saturating"


class Blobs(Generator):
    """One color per class."""

    def __init__(self, *, image_shape: list[int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.latent_shape, self.image_shape, self.num_classes = (2,), (channels, height, width), num_classes
        self.colors = torch.nn.Linear(num_classes, channels)

    depth = 1  # type: ignore[assignment]

    def stage(self, index: int, features: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        assert classes is not None
        colors = (self.colors(classes) + 0.1 * features[:, :1]).sigmoid()
        return colors[:, :, None, None].expand(-1, *self.image_shape)


def test_a_class_conditional_generator_of_another_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "blobs", Blobs)
    found, generator = open_generator(fit(tmp_path, "dcgan", model="blobs", settings={}))
    assert found.settings == {"image_shape": [3, 8, 8], "num_classes": 5}
    assert generator(*latents_for(generator, 6, 0)).shape == (6, 3, 8, 8)


def test_each_pass_shows_each_image_once_whatever_the_interval() -> None:
    found = []
    for every in (3, 5, 100):
        order = Steps(10, size=4, steps=11, every=every, seed=0)
        rows = []
        for epoch in range(-(-11 // every)):
            order.set_epoch(epoch)
            rows += list(order)
        found.append(torch.stack(rows))
    assert found[0].shape == (11, 4)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    for number in range(4):
        assert sorted(found[0].flatten()[10 * number : 10 * number + 10].tolist()) == list(range(10))


def module(kind: type[GeneratorTraining], tmp_path: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    rest = {"steps": 10, "every": 5, "seed": 0, "learning_rate": 1e-3, "anneal": 0.5, "decay": 0.9, "flips": False}
    rest |= {"out": tmp_path, "tune": torch.rand(2, 3, 8, 8)}
    if kind is VAETraining:
        shape: dict[str, Any] = {"image_shape": (3, 8, 8), "latent": 4, "widths": (4, 4)}
        parts = VAEDecoder(**shape), VAEEncoder(**shape), VAESettings(beta=0.3)
    else:
        parts = DCGAN(image_shape=(3, 8, 8), width=4), DCGANDiscriminator(image_shape=(3, 8, 8), width=4), GANSettings()
    return kind(*parts, **rest, **changes)


def test_the_loss_of_a_vae_is_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(VAETraining, tmp_path)
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(made, "_optimizers", lambda: [None])
    monkeypatch.setattr(made, "step_with", lambda _, loss: asked.append(loss))
    images = torch.rand(6, 3, 8, 8)
    made.losses(images, None)
    mean, log_variance = made.encoder(images)
    posterior = Normal(mean, (log_variance / 2).exp())
    drawn = made.generator(mean + posterior.stddev * made.latents(6))
    expected = (drawn - images).square().sum() / 6 + 0.3 * kl_divergence(posterior, Normal(0, 1)).sum() / 6
    torch.testing.assert_close(asked[0], expected)


def test_the_losses_of_a_gan_are_cross_entropies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(GANTraining, tmp_path)
    made.discriminator.eval()
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(made, "_optimizers", lambda: ["generator", "discriminator"])
    monkeypatch.setattr(made, "step_with", lambda _, loss: asked.append(loss))
    images = torch.rand(6, 3, 8, 8)
    made.losses(images, None)
    fakes = made.discriminator(made.generator(made.latents(6, "latents0")))
    real, one, zero = made.discriminator(images), torch.ones(6), torch.zeros(6)
    entropy = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(asked[0], entropy(real, one) + entropy(fakes, zero))
    torch.testing.assert_close(asked[1], entropy(fakes, one))


def test_the_average_of_the_weights(tmp_path: Path) -> None:
    made = module(VAETraining, tmp_path)
    expected = made.generator.read[0].bias.detach().clone()
    for step in range(1, 40):
        with torch.no_grad():
            made.generator.read[0].bias.copy_(torch.full_like(expected, float(step)))
        made.done = step
        made._average()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(made.average["generator"].read[0].bias, expected)


def test_the_rate_falls_over_the_last_part(tmp_path: Path) -> None:
    made = module(VAETraining, tmp_path)
    found = []
    for made.done in range(10):
        found.append(made._factor())
    assert found == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_statistics_of_averaged_weights_are_measured(tmp_path: Path) -> None:
    made = module(GANTraining, tmp_path)
    finished = made.finished()
    seen: list[torch.Tensor] = []
    finished.main[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    finished(torch.randn(4000, 100, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(finished.main[1].running_var, seen[0].var((0, 2, 3)), rtol=0.1, atol=0)
    assert not finished.training


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "at least 1"),
        ({"anneal": 1.5}, "anneal"),
        ({"project": -1}, "project"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"model": "biggan"}, "no generator 'biggan'"),
        ({"settings": {"depth": 3}}, "depth"),
        ({"settings": {"image_shape": [3, 8, 8]}}, "come from the data"),
        ({"gan": GANSettings()}, "no discriminator; leave"),
        ({"model": "dcgan", "settings": {}}, "leave `vae` out"),
        (
            {"model": "dcgan", "settings": {}, "vae": None, "gan": GANSettings(discriminator="x")},
            "no discriminator 'x'",
        ),
        ({"model": "dcgan", "settings": {}, "vae": None, "gan": GANSettings(settings={"depth": 1})}, "depth"),
    ],
)
def test_bad_settings_come_before_compute(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        fit(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="learning_rate"):
        fit(tmp_path, data=Broken())


def test_weights_and_biases_gets_the_pictures(tmp_path: Path) -> None:
    fit(tmp_path, "dcgan", steps=1, logger="wandb-offline")
    wandb.finish()  # as the end of the process would
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))) == 2


def test_mixed_precision(tmp_path: Path) -> None:
    plain, mixed = (load_file(fit(tmp_path / name, precision=name, steps=2)) for name in ("32-true", "bf16-mixed"))
    assert all(value.dtype == torch.float32 for value in mixed.values())
    difference = max(float((plain[name] - mixed[name]).abs().max()) for name in plain)
    assert 0 < difference < 0.02


def test_the_defaults_are_of_one_call(tmp_path: Path) -> None:
    changes = FAST | {"steps": 1, "every": 1}
    (file,) = fit_generator(data=Shrunk(), out=tmp_path, **changes)  # type: ignore[arg-type]
    assert file.name == "dcgan_shrunk.safetensors"
