"""`gibench fit` for generators: from data to a file, in a folder of its own."""

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from generators.card import MODELS, Card, Origin, Settings, Storage, build, save_generator
from generators.discriminators import DISCRIMINATORS, Discriminator
from generators.range_limit import RangeLimit
from generators.training import GANSettings, GANTraining, GeneratorTraining, VAESettings, VAETraining
from generators.vae import VAEDecoder, VAEEncoder
from gibench.data.base import ImageDataModule
from gibench.data.splits import Split, ids_hash
from gibench.errors import ConfigurationError
from gibench.metrics import psnr
from gibench.runs.media import LoggerName, make_logger
from gibench.search.generator import Generator
from gibench.seeding import derive
from gibench.seeding import generator as random_numbers
from gibench.victims.offline import metered
from gibench.victims.restart import Precision, claim, fit_from


def fit_generator(
    *,
    data: ImageDataModule,
    out: str | Path,
    model: str = "dcgan",
    settings: Settings | None = None,
    gan: GANSettings | None = None,
    vae: VAESettings | None = None,
    steps: int = 20000,
    together: int = 64,
    every: int = 500,
    images: int | None = None,
    tune: int = 256,
    project: int = 16,
    learning_rate: float = 2e-4,
    anneal: float = 0.5,
    decay: float = 0.999,
    flips: bool = False,
    storage: Storage = "float32",
    origin: Origin = "in_distribution",
    seed: int = 0,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    logger: LoggerName = "csv",
) -> list[Path]:
    """Train a generator on the prior split of `data` and return the file of its averaged weights.

    The same call again continues after a kill from the last state, or returns the file if it is there; on a CPU the
    file is byte for byte that of a training that was not killed. The folder also gets the settings (`training.json`),
    a log (`log/version_*/metrics.csv`), what it cost (`cost.json`), and pictures of the same latents as it goes
    (`samples/step_00000.png`); of a VAE also tune images above what it makes of them (`reconstructions`).

    Args:
        data: whose prior split is the attacker's auxiliary data.
        out: folder for the file, one for each training.
        model: a name of `generators.card.MODELS`; "vae" is trained with an encoder, all others against a discriminator.
        settings: its own arguments, such as width: 32; image_shape and num_classes come from the data.
        gan: loss and discriminator of a GAN.
        vae: loss and encoder of a VAE.
        steps: of the generator.
        together: images in one step (of the discriminator, where it makes several).
        every: steps between states, from which a killed training continues, and between pictures.
        images: train on so many images of the prior split only; None is all.
        tune: images of the tune split to measure on.
        project: so many of them are projected on the range of the finished generator, see `RangeLimit`, from two
            latents with 300 steps; their mean PSNR goes onto the card, as `range_limit_psnr`. 0 projects none.
        learning_rate: as all to `flips`, see `GeneratorTraining`.
        anneal: last part of the training, in which the learning rate falls to zero.
        decay: of the average of the weights.
        flips: mirror half of the images.
        storage: "float16" halves the file.
        origin: whether the data are of the distribution of the images that will be attacked.
        seed: decides weights, order, latents and flips.
        accelerator: Lightning's, e.g. "cpu" or "gpu".
        precision: Lightning's.
        logger: "csv", or "wandb" and "wandb-offline", which get the pictures, too.

    Raises:
        ConfigurationError: for settings that do not fit together, or the folder holds another training.
        NonFiniteError: the loss is not finite.
        StorageError: the folder cannot be written.
        WeightsError: the state from which a killed training continues is damaged.
    """
    if min(steps, together, every, tune, 1 if images is None else images, project + 1) < 1 or not 0 <= anneal <= 1:
        raise ConfigurationError(
            "steps, together, every, images and tune must be at least 1, project at least 0, anneal in 0..1."
        )
    if not (0 < learning_rate < 1 and 0 <= decay < 1):
        raise ConfigurationError(f"learning_rate is {learning_rate} and decay {decay}; set them between 0 and 1.")
    prior, held_out = some_of(data, "prior", images, seed), some_of(data, "tune", tune, seed)
    whole = completed(model, settings or {}, prior.images.shape[1:], int(prior.labels.max()) + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("generator", seed))
        generator = build(model, whole)
        partner, told = _partner(generator, whole, gan, vae)
    out = Path(out)
    told |= {
        "steps": steps,
        "together": together,
        "every": every,
        "images": len(prior.ids),
        "learning_rate": learning_rate,
        "anneal": anneal,
        "decay": decay,
        "flips": flips,
        "storage": storage,
        "seed": seed,
        "precision": precision,
        "tune_ids_sha256": ids_hash(held_out.ids),
    }
    card = Card(
        model=model,
        settings=whole,
        data=data.title,
        origin=origin,
        image_ids_sha256=ids_hash(prior.ids),
        training=told,
    )
    claim(out, card.model_dump_json(indent=2))
    file = out / f"{model}_{data.name}.safetensors"
    if file.is_file():
        return [file]
    rest: dict[str, Any] = {
        "out": out,
        "steps": steps,
        "every": every,
        "seed": seed,
        "learning_rate": learning_rate,
        "anneal": anneal,
        "decay": decay,
        "flips": flips,
        "tune": held_out.images,
    }
    module: GeneratorTraining
    if isinstance(partner, Discriminator):
        module, per_step = GANTraining(generator, partner, gan or GANSettings(), **rest), (gan or GANSettings()).steps
    else:
        module, per_step = VAETraining(generator, partner, vae or VAESettings(), **rest), 1
    order = Steps(len(prior.ids), size=together * per_step, steps=steps, every=every, seed=seed)
    state = out / "resume.ckpt"
    with metered(out, [file], images=len(prior.ids)) as meter:
        fit_from(
            state,
            module,
            DataLoader(TensorDataset(prior.images, prior.labels), sampler=order, batch_size=None),
            epochs=-(-steps // every),
            callbacks=[meter],
            accelerator=accelerator,
            precision=precision,
            logger=make_logger(logger, out.name, out),
        )
        finished = module.finished().cpu()
        found = module.quality | limit_on(finished, held_out, project)
        save_generator(card.model_copy(update={"training": told | found}), finished, file, storage=storage)
    state.unlink(missing_ok=True)
    return [file]


def limit_on(generator: Generator, held_out: Split, project: int) -> dict[str, float]:
    """The range limit on the first images of the tune split."""
    images, labels = held_out.images[:project], held_out.labels[:project]
    if not len(images):
        return {}
    with torch.random.fork_rng(devices=[]):
        projected = RangeLimit(generator, steps=300, restarts=2)(images[None], labels[None])[0]
    return {"range_limit_psnr": float(psnr(projected, images).mean()), "range_limit_images": float(len(images))}


class Steps(Sampler[Tensor]):
    """Batches of one size from an endless row of permutations; an epoch is `every` steps, the last one what is left.

    The indices of a step depend on the seed and its number alone.
    """

    def __init__(self, images: int, *, size: int, steps: int, every: int, seed: int) -> None:
        self.images, self.size, self.steps, self.every, self.seed = images, size, steps, every, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch, after a restart too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return min(self.every, self.steps)

    def __iter__(self) -> Iterator[Tensor]:
        first = self.epoch * self.every
        passes: dict[int, Tensor] = {}
        for step in range(first, min(first + self.every, self.steps)):
            places = torch.arange(step * self.size, (step + 1) * self.size)
            wanted = range(int(places[0]) // self.images, int(places[-1]) // self.images + 1)
            passes = {number: passes[number] if number in passes else self._order(number) for number in wanted}
            row = torch.cat([passes[number] for number in wanted])
            yield row[places - wanted[0] * self.images]

    def _order(self, number: int) -> Tensor:
        return torch.randperm(self.images, generator=random_numbers("order", self.seed, number))


def some_of(data: ImageDataModule, name: Any, most: int | None, seed: int) -> Split:  # noqa: ANN401 - a SplitName
    """At most so many images of a split, which the seed chooses."""
    images, labels, ids = data.split(name)
    if most is None or most >= len(images):
        return Split(images, labels, ids)
    kept = torch.randperm(len(images), generator=random_numbers("images", seed, name))[:most]
    return Split(images[kept], labels[kept], tuple(ids[row] for row in kept.tolist()))


def completed(model: str, settings: Settings, image_shape: Iterable[int], num_classes: int) -> Settings:
    """Settings with what the data say.

    Raises:
        ConfigurationError: there is no such model, or the settings say it, too.
    """
    if model not in MODELS:
        raise ConfigurationError(f"there is no generator {model!r}; choose one of {', '.join(MODELS)}.")
    told: Settings = {"image_shape": [*image_shape]}
    if "num_classes" in inspect.signature(MODELS[model]).parameters:
        told["num_classes"] = num_classes
    odd = sorted(told.keys() & settings.keys())
    if odd:
        raise ConfigurationError(f"{', '.join(odd)} come from the data; leave them out of the settings.")
    return told | settings


def _partner(
    generator: Generator, settings: Settings, gan: GANSettings | None, vae: VAESettings | None
) -> tuple[Discriminator | VAEEncoder, dict[str, Any]]:
    """What a generator is trained with, and what the card says of it."""
    shape = [*generator.image_shape]
    if isinstance(generator, VAEDecoder):
        if gan is not None:
            raise ConfigurationError("a VAE has no discriminator; leave `gan` out.")
        vae = vae or VAESettings()
        encoder = VAEEncoder(
            image_shape=shape, latent=generator.latent_shape[0], widths=vae.encoder or generator.widths
        )
        return encoder, {"vae": vae.model_dump()}
    if vae is not None:
        raise ConfigurationError("only the model 'vae' has an encoder; leave `vae` out.")
    gan = gan or GANSettings()
    if gan.discriminator not in DISCRIMINATORS:
        raise ConfigurationError(
            f"there is no discriminator {gan.discriminator!r}; choose one of {', '.join(DISCRIMINATORS)}."
        )
    network = DISCRIMINATORS[gan.discriminator]
    known = inspect.signature(network).parameters
    told = {"num_classes": settings["num_classes"]} if "num_classes" in known and "num_classes" in settings else {}
    try:
        return network(**{"image_shape": shape, **told, **gan.settings}), {"gan": gan.model_dump()}
    except TypeError as error:
        raise ConfigurationError(f"settings {gan.settings} do not fit the discriminator: {error}") from error
