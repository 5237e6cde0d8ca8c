"""The training of generators, step by step: an average of the weights, and the losses of a GAN and of a VAE."""

import copy
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from generators.card import Settings
from generators.discriminators import Discriminator
from generators.sample_grids import latents_for, publish_grid, standing_statistics
from generators.vae import VAEEncoder
from gibench.errors import NonFiniteError
from gibench.search.generator import Generator
from gibench.seeding import derive
from gibench.seeding import generator as random_numbers

Rate = Annotated[float, Field(gt=0, lt=1)]
SAMPLES = 64


class GANSettings(BaseModel):
    """What a GAN adds to its generator.

    discriminator: a name of `DISCRIMINATORS`. settings: its own arguments.
    loss: "non_saturating", that of DCGAN: the discriminator minimizes cross-entropy, the generator -log D(G(z)); or
        "hinge": mean max(0, 1 - D(x)) + max(0, 1 + D(G(z))), and -D(G(z)).
    steps: of the discriminator for each of the generator.
    learning_rate: of the discriminator; None is that of the generator.
    beta1: of Adam; 0.5 in DCGAN, 0 in most with spectral normalization. beta2 likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    discriminator: str = "dcgan"
    settings: Settings = {}
    loss: Literal["non_saturating", "hinge"] = "non_saturating"
    steps: Annotated[int, Field(ge=1, le=64)] = 1
    learning_rate: Rate | None = None
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.5
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999


class VAESettings(BaseModel):
    """What a VAE adds to its decoder.

    encoder: the widths of the encoder's maps, see `VAEEncoder`; None is those of the decoder.
    beta: weight of the divergence beside the squared error, which is summed over pixels: twice the variance of the
        noise on a pixel that the decoder stands for. Small values draw sharp reconstructions, large ones samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: list[int] | None = None
    beta: Annotated[float, Field(ge=0, le=1e6)] = 0.02


class GeneratorTraining(LightningModule, ABC):
    """Adam, an exponential moving average of the weights, which is what is kept, and pictures as it goes.

    Random numbers follow from the seed and the number of the step, so that a training which was killed continues
    exactly. Optimization is manual, in Lightning's words.

    Args:
        generator: is trained in place.
        kept: what is averaged: the generator and what belongs to it.
        out: folder of the pictures, `samples/step_00000.png` and on.
        steps: in all.
        every: steps between pictures.
        seed: of latents and flips.
        learning_rate: of Adam, constant until it falls in a straight line to zero over the last part of the training.
        anneal: that part, in 0..1.
        decay: of the average; lower in the first steps, min(decay, (1 + step) / (10 + step)).
        flips: mirror half of the images.
        tune: images (N, C, H, W) of the tune split, for pictures and quality.
    """

    def __init__(
        self,
        generator: Generator,
        kept: nn.ModuleDict,
        *,
        out: Path,
        steps: int,
        every: int,
        seed: int,
        learning_rate: float,
        anneal: float,
        decay: float,
        flips: bool,
        tune: Tensor,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.kept = generator, kept
        self.average = copy.deepcopy(kept).eval().requires_grad_(False)
        self.out, self.steps, self.every, self.seed = out, steps, every, seed
        self.learning_rate, self.anneal, self.decay, self.flips = learning_rate, anneal, decay, flips
        self.tune, self.done = tune, 0
        self.quality: dict[str, float] = {}

    @abstractmethod
    def losses(self, images: Tensor, classes: Tensor | None) -> dict[str, Tensor]:
        """Make one step on images (N, C, H, W) and return what is logged."""

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """One step, its random numbers, and the average."""
        images, labels = batch
        torch.manual_seed(derive("generator", self.seed, self.done))
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self._factor()
        if self.flips:
            mirrored = torch.rand(len(images), generator=self._random("flips")) < 0.5
            images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)
        count = self.generator.num_classes
        classes = None if count is None else F.one_hot(labels, count).to(images)
        told = self.losses(images, classes)
        self.done += 1
        self._average()
        self.log_dict(told, prog_bar=True)
        self.log("step", float(self.done))

    def _random(self, purpose: str) -> torch.Generator:
        return random_numbers(purpose, self.seed, self.done)

    def latents(self, count: int, purpose: str = "latents") -> Tensor:
        """Latents for this step, the same on each device."""
        drawn = torch.randn(count, *self.generator.latent_shape, generator=self._random(purpose))
        return drawn.to(self.device)

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        # Lightning's wrappers count steps: where none is counted, no state is saved.
        found = self.optimizers()
        return cast(list[torch.optim.Optimizer], found if isinstance(found, list) else [found])

    def _factor(self) -> float:
        left = 1 - self.done / self.steps
        return 1.0 if left >= self.anneal else left / self.anneal

    def step_with(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """One step of an optimizer down the gradient of a loss.

        Raises:
            NonFiniteError: the loss is not finite.
        """
        if not math.isfinite(float(loss.detach())):
            raise NonFiniteError(f"the loss is not finite at step {self.done}; lower the learning_rate.")
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.decay, (1 + self.done) / (10 + self.done))
        own, averaged = self.kept.state_dict(), self.average.state_dict()
        for name, value in averaged.items():
            if value.is_floating_point():
                value.lerp_(own[name], 1 - decay)
            else:
                value.copy_(own[name])

    def finished(self) -> Generator:
        """A copy of the averaged generator in evaluation mode, its BatchNorm statistics measured anew."""
        found = copy.deepcopy(self.average["generator"])
        assert isinstance(found, Generator)  # noqa: S101 - the type of what was put there
        return standing_statistics(found, seed=self.seed)

    @torch.no_grad()
    def show(self) -> None:
        """Draw fixed latents, and measure what there is to measure."""
        found = self.finished()
        drawn = found(*latents_for(found, SAMPLES, "samples", self.seed))
        self._write(drawn, "samples")

    def _write(self, images: Tensor, name: str) -> None:
        publish_grid(images, self.out / name / f"step_{self.done:05d}.png", self.logger)

    def on_train_start(self) -> None:
        """The untrained generator, for comparison."""
        if not self.done:
            self.show()

    def on_train_epoch_end(self) -> None:
        """An epoch here is `every` steps."""
        self.show()
        if self.quality:
            self.log_dict(self.quality, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the number of the step with the state."""
        checkpoint["generator"] = {"done": self.done, "quality": self.quality}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it from the state."""
        self.done, self.quality = checkpoint["generator"]["done"], checkpoint["generator"]["quality"]


class GANTraining(GeneratorTraining):
    """A generator against a discriminator; see `GANSettings`.

    The last of the discriminator's steps and the generator's share their fakes, as in PyTorch's DCGAN example.
    """

    def __init__(self, generator: Generator, discriminator: Discriminator, gan: GANSettings, **rest: Any) -> None:  # noqa: ANN401 - see the base
        super().__init__(generator, nn.ModuleDict({"generator": generator}), **rest)
        self.discriminator, self.gan = discriminator, gan

    def losses(self, images: Tensor, classes: Tensor | None) -> dict[str, Tensor]:
        """See `GeneratorTraining`; of the images each step of the discriminator gets its share."""
        draws, scores = self._optimizers()
        shares = images.chunk(self.gan.steps)
        asked: tuple[Tensor | None, ...] = (None,) * len(shares) if classes is None else classes.chunk(self.gan.steps)
        for number, (real, kind) in enumerate(zip(shares, asked, strict=True)):
            last = number == len(shares) - 1
            with torch.set_grad_enabled(last):
                fakes = self.generator(self.latents(len(real), f"latents{number}"), kind)
            self.discriminator.requires_grad_(True)
            wrong = self._wrong(self.discriminator(real, kind), self.discriminator(fakes.detach(), kind))
            self.step_with(scores, wrong)
        self.discriminator.requires_grad_(False)
        judged = self.discriminator(fakes, kind).float()
        missed = -judged.mean() if self.gan.loss == "hinge" else F.softplus(-judged).mean()
        self.step_with(draws, missed)
        return {"discriminator_loss": wrong.detach(), "generator_loss": missed.detach()}

    def _wrong(self, real: Tensor, fake: Tensor) -> Tensor:
        real, fake = real.float(), fake.float()
        if self.gan.loss == "hinge":
            return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for both."""
        betas = (self.gan.beta1, self.gan.beta2)
        rates = (self.learning_rate, self.gan.learning_rate or self.learning_rate)
        return [
            torch.optim.Adam([{"params": [*net.parameters()], "initial_lr": rate}], lr=rate, betas=betas)
            for net, rate in zip((self.generator, self.discriminator), rates, strict=True)
        ]


class VAETraining(GeneratorTraining):
    """A decoder with its encoder: |x - G(z)|^2 + beta KL(q(z | x), N(0, 1)), z drawn from q; see `VAESettings`."""

    def __init__(self, generator: Generator, encoder: VAEEncoder, vae: VAESettings, **rest: Any) -> None:  # noqa: ANN401 - see the base
        super().__init__(generator, nn.ModuleDict({"generator": generator, "encoder": encoder}), **rest)
        self.encoder, self.vae = encoder, vae

    def losses(self, images: Tensor, classes: Tensor | None) -> dict[str, Tensor]:
        """See `GeneratorTraining`."""
        mean, log_variance = (each.float() for each in self.encoder(images))
        drawn = self.generator(mean + (log_variance / 2).exp() * self.latents(len(images)), classes).float()
        error = (drawn - images).square().flatten(1).sum(1).mean()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        self.step_with(self._optimizers()[0], error + self.vae.beta * divergence)
        return {"mse": (error / images[0].numel()).detach(), "divergence": divergence.detach()}

    @torch.no_grad()
    def show(self) -> None:
        """Beside samples: tune images, and in the row below what is made of them."""
        super().show()
        drawn = torch.cat([self._reconstructed(images.to(self.device)) for images in self.tune.split(256)]).cpu()
        errors = (drawn - self.tune).square().flatten(1).mean(1)
        self.quality = {"tune_mse": float(errors.mean()), "tune_psnr": float(-10 * errors.log10().mean())}
        rows = zip(self.tune[:32].split(8), drawn[:32].split(8), strict=True)
        self._write(torch.cat([row for pair in rows for row in pair]), "reconstructions")

    def _reconstructed(self, images: Tensor) -> Tensor:
        drawn: Tensor = self.average["generator"](self.average["encoder"](images)[0])
        return drawn

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for both parts at once."""
        rate = self.learning_rate
        return [torch.optim.Adam([{"params": [*self.kept.parameters()], "initial_lr": rate}], lr=rate)]
