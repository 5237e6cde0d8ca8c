"""GIML: meta-learn a generator from a stream of updates (Jeon, Kim, Lee, Oh, Ok, NeurIPS 2021)."""

from pathlib import Path
from typing import Any

import torch

from generators.card import UPDATES, Card, Settings, Storage, build, open_generator, save_generator
from generators.fitting import completed, limit_on, some_of
from generators.meta_learning import GIMLTraining, Stream
from generators.sample_grids import standing_statistics
from gibench.attacks import GradientMatching, gias
from gibench.clients import Client
from gibench.data.base import ImageDataModule
from gibench.data.splits import ids_hash
from gibench.engine import Engine
from gibench.errors import ConfigurationError
from gibench.labels import LabelSource
from gibench.runs.media import LoggerName, make_logger
from gibench.search.generator import Generator, resampling
from gibench.seeding import derive
from gibench.victims.offline import metered
from gibench.victims.restart import claim, fit_from
from gibench.victims.training import split_for


def fit_giml(
    *,
    client: Client,
    data: ImageDataModule,
    out: str | Path,
    model: str = "dcgan",
    settings: Settings | None = None,
    rounds: int = 200,
    together: int = 4,
    batch_size: int = 1,
    latent_steps: int = 1000,
    latent_rate: float = 0.03,
    weight_steps: int = 500,
    weight_rate: float = 1e-3,
    meta_rate: float = 1e-2,
    tv: float = 1e-4,
    latent_weight: float = 1e-3,
    restarts: int = 1,
    labels: LabelSource | None = None,
    start: str | Path | None = None,
    resample: bool = False,
    images: int | None = None,
    every: int = 10,
    project: int = 16,
    storage: Storage = "float32",
    engine: Engine | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    logger: LoggerName = "csv",
) -> list[Path]:
    r"""Learn a generator G_w from the updates of earlier rounds of federated learning, and return its file.

    In each round the attacker sees the updates of `together` clients, searches them as GIAS does with the generator of
    the moment (the latent, then the weights, for each image its own w + d), and moves w towards what was found:

    .. math:: w \leftarrow \mathrm{Adam}\big(w, \; \tfrac1N \textstyle\sum_n (w - w'_n)\big), \qquad w'_n = w + d_n

    **Threat model.** The attacker has no images at all, neither of the distribution attacked nor others, but has
    watched other clients' updates and knows of each what the client's threat model grants. So the file says "updates"
    for its origin, and an attack with it needs no `prior_data`; what it needs instead, to have been there before, no
    flag of `ThreatModel` says: state it beside the result. The images whose updates are watched are those of the prior
    split. They never reach the search: `client` turns them into an `Observation`, which is all that a round gets.

    Defaults are those of the paper's script: 200 rounds of four updates of one image each, the cosine, 1,000 steps of
    Adam at 0.03 on the latent with a weight on its norm, 500 at 0.001 on the weights, TV 1e-4, one restart, and Adam at
    0.01 outside, for an untrained StyleGAN2 of faces. We differ in the following. The search is `gias` with its
    differences, so w' is the best iterate, not the last. The prior of the latent is half its squared length times
    `latent_weight`. The victim stands still, where the script takes a step of SGD of rate 1e-4 every 50 rounds.
    Updates whose search was not finite are left out of the mean. And BatchNorm statistics of an untrained generator
    are measured once on random latents and then kept, so that all rounds learn the weights of one family of functions.

    The same call again continues after a kill from the last round, or returns the file if it is there; on a CPU the
    file is byte for byte that of a training that was not killed. The folder also gets the settings (`training.json`), a
    log with the mean match of each round (`log/version_*/metrics.csv`), what it cost (`cost.json`; its examples are
    updates, and its images are none), and pictures of the same latents as it goes (`samples/round_00000.png`).

    Args:
        client: whose updates are watched: victim, kind of update, defense, threat model.
        data: whose prior split holds the private images of the clients that are watched.
        out: folder for the file, one for each training.
        model: a name of `generators.card.MODELS`.
        settings: its own arguments, such as width: 32; image_shape and num_classes come from data and victim.
        rounds: of the stream.
        together: updates in a round.
        batch_size: images behind an update; the published attack is for 1.
        latent_steps: as all to `weight_rate`, see `gias`.
        latent_rate: for the latent.
        weight_steps: at least 1.
        weight_rate: for the weights.
        meta_rate: of the outer Adam.
        tv: weight of the total variation.
        latent_weight: of the latent's prior.
        restarts: random latents for each update; that whose last search matches best gives its weights.
        labels: where the search takes labels from; None takes those that the threat model grants.
        start: a generator to start from; None is an untrained one. What had to be granted for it still has to be.
        resample: bring the images of `start` to the victim's size.
        images: watch updates of so many images of the prior split only; None is all, each once before any twice.
        every: rounds between pictures.
        project: so many tune images are projected on the range of the finished generator, see `fit_generator`.
        storage: "float16" halves the file.
        engine: how the searches are computed; what it chooses in the first round is kept for all. It chooses by time
            where there is much to do, and back ends differ in last digits: name one for the same file from each run.
        seed: decides weights and order; the client's own seed decides what clients and searches draw.
        accelerator: Lightning's, e.g. "cpu" or "gpu".
        logger: "csv", or "wandb" and "wandb-offline", which get the pictures, too.

    Raises:
        ConfigurationError: for settings that do not fit together, or the folder holds another training.
        NonFiniteError: no search of a round was finite.
        StorageError: the folder cannot be written.
        ThreatModelError: the client's threat model does not grant what the search needs.
        WeightsError: `start`, or the state from which a killed training continues, is damaged.
    """
    if min(rounds, together, batch_size, weight_steps, every, 1 if images is None else images, project + 1) < 1:
        raise ConfigurationError(
            "rounds, together, batch_size, weight_steps, every and images must be at least 1, project at least 0."
        )
    if not 0 < meta_rate < 1:
        raise ConfigurationError(f"meta_rate is {meta_rate}; set it between 0 and 1.")
    split_for(data, "prior", client.victim)
    watched, held_out = some_of(data, "prior", images, seed), some_of(data, "tune", max(project, 1), seed)
    generator, card = _begin(model, settings, start, client, seed)
    resampling(generator, client.victim.image_shape, resample=resample)
    search: dict[str, Any] = {
        "latent_steps": latent_steps,
        "latent_rate": latent_rate,
        "weight_steps": weight_steps,
        "weight_rate": weight_rate,
        "tv": tv,
        "latent_weight": latent_weight,
        "resample": resample,
        "restarts": restarts,
    }

    def attack(generator: Generator) -> GradientMatching:
        return gias(generator=generator, labels=labels, engine=engine, **search)

    attack(generator).check(client.threat_model, "GIML")
    out = Path(out)
    told = search | {
        "rounds": rounds,
        "together": together,
        "batch_size": batch_size,
        "meta_rate": meta_rate,
        "labels": None if labels is None else type(labels).__name__,
        "images": len(watched.ids),
        "storage": storage,
        "seed": seed,
        "start": generator.weights_sha256,
        "client": _described(client),
    }
    card = card.model_copy(
        update={"data": data.title, "image_ids_sha256": ids_hash(watched.ids), "training": told},
    )
    claim(out, card.model_dump_json(indent=2))
    file = out / f"giml_{data.name}.safetensors"
    if file.is_file():
        return [file]
    module = GIMLTraining(generator, attack, meta_rate=meta_rate, rounds=rounds, every=every, out=out, seed=seed)
    stream = Stream(client, watched, rounds=rounds, together=together, batch_size=batch_size, seed=seed)
    state = out / "resume.ckpt"
    with metered(out, [file], images=0, start=generator.weights_path) as meter:
        fit_from(
            state,
            module,
            stream,
            epochs=rounds,
            callbacks=[meter],
            accelerator=accelerator,
            precision="32-true",
            logger=make_logger(logger, out.name, out),
        )
        finished = module.generator.cpu()
        found = {"gradient_evaluations": module.evaluations} | limit_on(finished, held_out, project)
        save_generator(card.model_copy(update={"training": told | found}), finished, file, storage=storage)
    state.unlink(missing_ok=True)
    return [file]


def _begin(
    model: str, settings: Settings | None, start: str | Path | None, client: Client, seed: int
) -> tuple[Generator, Card]:
    """The generator of the first round, and its card, on which data and training are still missing."""
    if start is not None:
        card, generator = open_generator(start)
        if settings is not None or card.model != model:
            raise ConfigurationError(f"{start} is a {card.model!r}; set model to that, and leave settings out.")
        return generator, card
    victim = client.victim
    whole = completed(model, settings or {}, victim.image_shape, victim.num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("generator", seed))
        generator = build(model, whole)
    card = Card(model=model, settings=whole, data="", origin=UPDATES, image_ids_sha256=ids_hash([]), training={})
    return standing_statistics(generator, seed=seed), card


def _described(client: Client) -> dict[str, Any]:
    """What the reader of a card is told of the clients that were watched."""
    simulate = client.attacker_simulate()
    local = {name: getattr(simulate, name, None) for name in ("steps", "size", "rate", "clients")}
    return {
        "kind": type(client).__name__,
        "victim": client.victim.fingerprint(),
        "threat_model": client.threat_model.model_dump(),
        "defense": None if client.defense is None else str(client.defense),
        "seed": client.seed,
        **{name: value for name, value in local.items() if value is not None},
    }
