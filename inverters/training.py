"""Train an inverter on pairs of updates and images; a run that was killed continues exactly."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.nn import functional as F

from gibench.clients import Client
from gibench.data.base import ImageDataModule
from gibench.errors import ConfigurationError, NonFiniteError
from gibench.metrics import psnr
from gibench.report.pictures import to_image
from gibench.runs.media import PICTURES, LoggerName, make_logger
from gibench.seeding import derive
from gibench.storage import write_atomically
from gibench.victims.restart import Precision, fit_from
from inverters.assignment import assigned
from inverters.base import Inverter
from inverters.card import (
    Card,
    Loaded,
    NetworkName,
    Origin,
    Setting,
    build,
    load_inverter,
    local_of,
    probe,
    save_inverter,
    shapes_of,
    weights_sha256,
)
from inverters.features import FeatureSettings, UpdateFeatures
from inverters.pairs import Pair, Pairs

FILE = "inverter.safetensors"


class InverterTraining(LightningModule):
    """Adam on the mean squared error of the best assignment; keeps the weights of the best epoch on the tune split.

    Where the network says how many images there are, the cross-entropy of that is added.

    Args:
        network: is trained in place.
        epochs: in all, of which milestones are fractions.
        learning_rate: of Adam; 1e-4 in Learning to Invert, whose features are not standardized.
        milestones: fractions of the training after which the learning rate is divided by ten; None lowers it along a
            cosine to zero.
        patience: epochs without a better tune loss after which training stops; None never stops.
        existence: weight of the cross-entropy.
    """

    def __init__(
        self,
        network: Inverter,
        *,
        epochs: int,
        learning_rate: float = 1e-3,
        milestones: Sequence[float] | None = None,
        patience: int | None = 10,
        existence: float = 0.01,
    ) -> None:
        super().__init__()
        self.network = network
        self.epochs, self.learning_rate, self.patience, self.existence = epochs, learning_rate, patience, existence
        self.milestones = None if milestones is None else list(milestones)
        self.best: dict[str, Tensor] = {}
        self.quality: dict[str, float] = {}
        self.waited = 0
        self._told: list[tuple[int, float, Tensor, Tensor | None]] = []
        self._shown: list[Any] = []  # private at the left, reconstructed at the right

    def training_step(self, pair: Pair, _: int) -> Tensor:
        """The loss of one step's updates."""
        loss, _found, _slots = self._loss(pair)
        self.log("loss", loss, prog_bar=True)
        return loss

    def _loss(self, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
        slots = self.network(pair.features)
        size = pair.images.shape[1]
        errors, chosen = assigned(slots.images[:, :size].float(), pair.images)
        loss = errors.mean()
        if slots.existence is not None:
            exists = (torch.arange(slots.existence.shape[1], device=loss.device) < size).to(slots.existence)
            exists = exists.expand_as(slots.existence)
            loss = loss + self.existence * F.binary_cross_entropy_with_logits(slots.existence, exists)
        return loss, slots.images, chosen

    def validation_step(self, pair: Pair, _: int) -> None:
        """Note loss, PSNR and the number of images named, for the updates of one step."""
        loss, images, chosen = self._loss(pair)
        rows = torch.arange(len(images), device=images.device)[:, None]
        found = images[rows, chosen].float().clamp(0, 1)
        values = psnr(found.flatten(0, 1), pair.images.flatten(0, 1))
        existence = self.network(pair.features).existence
        exact = None if existence is None else ((existence > 0).sum(1) == pair.images.shape[1]).float().cpu()
        self._told.append((pair.images.shape[1], float(loss) * len(images), values.cpu(), exact))
        if not self._shown and isinstance(self.logger, WandbLogger):
            beside = torch.cat([pair.images.flatten(0, 1), found.flatten(0, 1)], dim=-1)
            self._shown = [to_image(each) for each in beside[:PICTURES].float().cpu()]

    def on_validation_epoch_end(self) -> None:
        """Keep the weights if they are the best so far, else count the epoch."""
        told, self._told = self._told, []
        updates = sum(len(values) // size for size, _, values, _ in told)
        loss = sum(loss for _, loss, _, _ in told) / updates
        if not torch.isfinite(torch.tensor(loss)):
            raise NonFiniteError("the loss of the inverter is not finite; lower its learning_rate.")
        found = {"tune_loss": loss, "epoch": float(self.current_epoch)}
        for size in sorted({size for size, *_ in told}):
            found[f"tune_psnr_b{size}"] = float(torch.cat([values for own, _, values, _ in told if own == size]).mean())
            exact = [exact for own, _, _, exact in told if own == size and exact is not None]
            if exact:
                found[f"tune_count_b{size}"] = float(torch.cat(exact).mean())
        self.log_dict({name: value for name, value in found.items() if name != "epoch"}, prog_bar=True)
        shown, self._shown = self._shown, []
        if self.trainer.sanity_checking:
            return
        if isinstance(self.logger, WandbLogger):
            self.logger.log_image("tune/pictures", images=shown)
        if not self.quality or loss < self.quality["tune_loss"]:
            self.quality, self.waited = found, 0
            self.best = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        else:
            self.waited += 1
            self._stop()

    def _stop(self) -> None:
        if self.patience is not None and self.waited >= self.patience:
            self.trainer.should_stop = True

    def on_train_start(self) -> None:
        """Do not go on where the training had stopped before it was killed."""
        self._stop()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the best epoch with the state."""
        checkpoint["inverter"] = {"best": self.best, "quality": self.quality, "waited": self.waited}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the best epoch from the state."""
        kept = checkpoint["inverter"]
        self.best, self.quality, self.waited = kept["best"], kept["quality"], kept["waited"]

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's nested dictionary
        """Adam, its learning rate lowered by steps or along a cosine."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if self.milestones is None:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        else:
            marks = [int(steps * fraction) for fraction in self.milestones]
            schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, marks, gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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
    cache: str | Path | None = None,
    origin: Origin = "in_distribution",
    seed: int = 0,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    logger: LoggerName = "csv",
) -> list[Path]:
    """Train an inverter on the prior split of `data` and return the file of its best weights on the tune split.

    The same call again continues after a kill from the end of the last epoch, or returns the file if it is there; on a
    CPU the file is byte for byte that of a training that was not killed. The folder also gets the settings
    (`training.json`) and a log (`log/version_*/metrics.csv`).

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
        epochs: see `InverterTraining`, as for all to `existence`.
        together: updates in one step.
        images: train on so many images of the prior split only; None is all.
        tune: images of the tune split to stop by.
        learning_rate: of Adam.
        milestones: None is a cosine.
        patience: epochs.
        existence: weight.
        start: an inverter to start from, whose network and features are kept; for fine-tuning.
        cache: folder for the pairs, see `Pairs`.
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
    made = Pairs(
        clients=several,
        data=data,
        features=reads,
        batch_sizes=batch_sizes,
        together=together,
        images=images,
        tune=tune,
        seed=seed,
        cache=cache,
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
        "cached": cache is not None,
        "tune_ids_sha256": _ids_sha256(made.tune[2]),
        "start": None if begun is None else hashlib.sha256(begun.path.read_bytes()).hexdigest(),
    }
    card = _card(begun.card if begun else None, made, network, dict(settings or {}), most, data.name, origin, told)
    inverter = _network(card, reads, begun, seed)
    # Without the probe, whose last digits differ between machines.
    _claim(out, card.model_dump_json(indent=2, exclude={"probe"}))
    if not file.is_file():
        made.fill()
        if begun is None:
            made.measure()
        module = InverterTraining(
            inverter,
            epochs=epochs,
            learning_rate=learning_rate,
            milestones=milestones,
            patience=patience,
            existence=existence,
        )
        state = out / "resume.ckpt"
        fit_from(
            state,
            module,
            made,
            epochs=epochs,
            callbacks=[],
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
        image_ids_sha256=_ids_sha256(made.prior[2]),
        training=training,
    )


def _ids_sha256(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


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
        return build(
            card.network,
            card.settings,
            tokens=features.tokens,
            width=features.width,
            image_shape=tuple(card.image_shape),
            slots=card.slots,
        )


def _claim(folder: Path, settings: str) -> None:
    """Note the settings in the folder, or raise if it holds a training with others."""
    noted = folder / "training.json"
    if not noted.exists():
        write_atomically(settings.encode(), noted)
    elif noted.read_text() != settings:
        raise ConfigurationError(f"{folder} holds a training with other settings ({noted}); choose another folder.")
