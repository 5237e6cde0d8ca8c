"""`gibench fit` for inverters: from a client and data to a file, in a folder of its own."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gibench.clients import Client
from gibench.data.base import ImageDataModule
from gibench.data.splits import ids_hash
from gibench.errors import ConfigurationError
from gibench.runs.media import LoggerName, make_logger
from gibench.seeding import derive
from gibench.victims.offline import metered
from gibench.victims.restart import Precision, claim, fit_from
from gibench.victims.weights import weights_sha256
from inverters.base import Inverter
from inverters.card import (
    Card,
    Loaded,
    NetworkName,
    Origin,
    Setting,
    build_for,
    load_inverter,
    local_of,
    probe,
    save_inverter,
    shapes_of,
)
from inverters.features import FeatureSettings, UpdateFeatures
from inverters.pairs import Pairs
from inverters.training import InverterTraining

FILE = "inverter.safetensors"


def fit_inverter(
    *,
    client: Client | None = None,
    clients: Sequence[Client] = (),
    data: ImageDataModule,
    out: str | Path,
    network: NetworkName = "mlp",
    settings: dict[str, Setting] | None = None,
    features: FeatureSettings | None = None,
    batch_sizes: Sequence[int] = (1,),
    slots: int | None = None,
    epochs: int = 30,
    together: int = 256,
    images: int | None = None,
    tune: int = 1000,
    learning_rate: float = 1e-3,
    milestones: Sequence[float] | None = None,
    patience: int | None = 10,
    existence: float = 0.01,
    start: str | Path | None = None,
    cache: bool | str | Path | None = None,
    origin: Origin = "in_distribution",
    seed: int = 0,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    logger: LoggerName = "csv",
) -> list[Path]:
    """Train an inverter on the prior split of `data` and return the file of its best weights on the tune split.

    The same call again continues after a kill from the end of the last epoch, or returns the file if it is there; on a
    CPU the file is byte for byte that of a training that was not killed. The folder also gets the settings
    (`training.json`), what it cost (`cost.json`) and a log (`log/version_*/metrics.csv`).

    Args:
        client: whose updates are inverted: victim, kind of update and defense.
        clients: several instead, with victims of one architecture at other weights, for weights that move.
        data: whose prior split is the attacker's auxiliary data.
        out: folder for the file, one for each training.
        network: "mlp", the published one; "convolutional"; or "set", for any number of images up to `slots`.
        settings: its own arguments, such as hidden: 3000.
        features: how updates are read; None is 4,096 signed buckets, standardized.
        batch_sizes: B of the updates; several for "set" alone.
        slots: images that the network answers; None is the largest of `batch_sizes`.
        epochs: at most.
        together: updates in one step.
        images: train on so many images of the prior split only; None is all.
        tune: images of the tune split to stop by.
        learning_rate: as all to `existence`, see `InverterTraining`.
        milestones: fractions of the training.
        patience: in epochs.
        existence: weight of the count.
        start: an inverter to start from, whose network and features are kept; for fine-tuning.
        cache: folder for the pairs, see `Pairs`; true is `pairs` in `out`.
        origin: whether the data are of the distribution of the images that will be attacked.
        seed: decides weights, order and what defenses draw.
        accelerator: Lightning's, e.g. "cpu" or "gpu".
        precision: Lightning's.
        logger: "csv", or "wandb" and "wandb-offline", which get pictures of tune images, too.

    Raises:
        ConfigurationError: for settings that do not fit together, or the folder holds another training.
        NonFiniteError: pairs or loss hold NaN or infinity.
        StorageError: the folder cannot be written.
        WeightsError: `start`, or the state from which a killed training continues, is damaged.
    """
    several = _clients(client, clients)
    begun = None if start is None else load_inverter(start)
    reads = _features(several[0], features, begun)
    most = slots or max(batch_sizes)
    if begun is not None:
        network, most = begun.card.network, begun.card.slots
    if network != "set" and [most] != [*batch_sizes]:
        raise ConfigurationError(
            f"the network {network!r} answers batches of {most}, not of {[*batch_sizes]}; choose 'set' for several."
        )
    if most < max(batch_sizes) or epochs < 1:
        raise ConfigurationError(f"slots is {most} for batches of {max(batch_sizes)}, epochs {epochs}; raise them.")
    out = Path(out)
    file = out / FILE
    kept = out / "pairs" if cache is True else cache or None
    made = Pairs(
        clients=several,
        data=data,
        features=reads,
        batch_sizes=batch_sizes,
        together=together,
        images=images,
        tune=tune,
        seed=seed,
        cache=kept,
    )
    told: dict[str, Any] = {
        "epochs": epochs,
        "together": together,
        "images": len(made.prior[2]),
        "learning_rate": learning_rate,
        "milestones": None if milestones is None else [*milestones],
        "patience": patience,
        "existence": existence,
        "seed": seed,
        "precision": precision,
        "cached": kept is not None,
        "tune_ids_sha256": ids_hash(made.tune[2]),
        "start": None if begun is None else hashlib.sha256(begun.path.read_bytes()).hexdigest(),
    }
    card = _card(begun.card if begun else None, made, network, dict(settings or {}), most, data.title, origin, told)
    inverter = _network(card, reads, begun, seed)
    # Without the probe, whose last digits differ between machines.
    claim(out, card.model_dump_json(indent=2, exclude={"probe"}))
    if file.is_file():
        return [file]
    state = out / "resume.ckpt"
    module = InverterTraining(
        inverter,
        learning_rate=learning_rate,
        milestones=milestones,
        patience=patience,
        existence=existence,
    )
    with metered(out, [file], images=len(made.prior[2]), start=None if begun is None else begun.path) as meter:
        made.fill()
        if begun is None:
            made.measure()
        fit_from(
            state,
            module,
            made,
            epochs=epochs,
            callbacks=[meter],
            accelerator=accelerator,
            precision=precision,
            logger=make_logger(logger, out.name, out),
        )
        module.network.load_state_dict(module.best)
        save_inverter(card.model_copy(update={"training": told | module.quality}), module.network, reads, file)
    state.unlink(missing_ok=True)
    return [file]


def _card(
    begun: Card | None,
    made: Pairs,
    network: NetworkName,
    settings: dict[str, Setting],
    slots: int,
    data: str,
    origin: Origin,
    training: dict[str, Any],
) -> Card:
    first = made.clients[0]
    victim = first.victim
    return Card(
        network=begun.network if begun else network,
        settings=begun.settings if begun else settings,
        features=made.features.settings,
        shapes={name: [*shape] for name, shape in made.features.shapes.items()},
        image_shape=list(victim.image_shape),
        slots=begun.slots if begun else slots,
        batch_sizes=[*made.batch_sizes],
        victims=[weights_sha256(each.victim) for each in made.clients],
        architecture=victim.architecture,
        update=first.threat_model.update,
        local=local_of(first.attacker_simulate()),
        batch_norm=first.threat_model.batch_norm,
        defense=None if first.defense is None else str(first.defense),
        probe=probe(
            first.simulate,
            like=next(victim.parameters()),
            image_shape=victim.image_shape,
            batch_size=made.batch_sizes[0],
            classes=victim.num_classes,
        ),
        hash_sha256=made.features.digest(),
        data=data,
        origin=origin,
        image_ids_sha256=ids_hash(made.prior[2]),
        training=training,
    )


def _clients(client: Client | None, clients: Sequence[Client]) -> list[Client]:
    several = [*([] if client is None else [client]), *clients]
    if not several or (client is not None and clients):
        raise ConfigurationError("name the client whose updates are inverted: `client` for one, or `clients`.")
    kinds = {
        (
            str(shapes_of(each)),
            str(each.defense),
            each.threat_model.update,
            each.threat_model.batch_norm,
            str(local_of(each.attacker_simulate())),
        )
        for each in several
    }
    if len(kinds) > 1:
        raise ConfigurationError(
            "the clients differ in victim, defense, BatchNorm regime or local steps; only weights may differ."
        )
    return several


def _features(client: Client, settings: FeatureSettings | None, begun: Loaded | None) -> UpdateFeatures:
    if begun is None:
        return UpdateFeatures(shapes=shapes_of(client), settings=settings or FeatureSettings())
    if settings is not None:
        raise ConfigurationError("an inverter that is trained on keeps its features; leave `features` out.")
    shapes = {name: [*shape] for name, shape in shapes_of(client).items()}
    if begun.card.shapes != shapes:
        raise ConfigurationError(f"{begun.path} is for another victim than {client.victim.architecture}.")
    return begun.features()


def _network(card: Card, features: UpdateFeatures, begun: Loaded | None, seed: int) -> Inverter:
    if begun is not None:
        return begun.network.train().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("inverter", seed))
        return build_for(card, tokens=features.tokens, width=features.width)
