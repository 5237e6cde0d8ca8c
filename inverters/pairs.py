"""Pairs of updates and images, as many as wanted: what an inverter is trained on."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gibench.clients import Client
from gibench.data.groups import update_id
from gibench.data.splits import ids_hash
from gibench.errors import ConfigurationError
from gibench.seeding import generator
from gibench.types import Batch
from gibench.victims.training import Images, split_for
from gibench.victims.weights import weights_sha256
from inverters.cache import PairCache
from inverters.card import local_of
from inverters.features import UpdateFeatures


class Pair(NamedTuple):
    """features (U, T, K), standardized, and the images (U, B, C, H, W) behind them."""

    features: Tensor
    images: Tensor


class Step(NamedTuple):
    """What one step draws.

    rows: of the split's images, (U, B). client: which makes the updates. name: of the draw, for what a defense draws.
    kept: the numbers of the updates in the cache, (U,), if there is one.
    """

    rows: Tensor
    client: int
    name: str
    kept: Tensor | None = None


class Pairs(LightningDataModule):
    """Turns images of the prior split into updates with the very client that the attack faces.

    So every defense, FedAvg and BatchNorm regime is what it is there. The updates are made where the training runs,
    U at once, and never kept, so that memory does not depend on their number; `cache` keeps them on disk instead, for
    clients whose updates do not differ from epoch to epoch. Everything follows from the seed: epoch e of a training is
    the same after a restart, and what a defense draws for an update depends on its images, the epoch and the seed.

    Args:
        clients: the client, or several with victims of one architecture, of which each step draws one.
        data: with the splits "prior" (trained on) and "tune" (to stop by).
        features: how updates are read; `fit` measures their statistics here.
        batch_sizes: B, of which each step draws one.
        together: U, updates in one step.
        images: use only the first so many of the prior split, in an order that the seed decides; None is all.
        tune: images of the tune split, at most.
        seed: of order, draws and defenses.
        cache: folder for pairs that are made once; None makes them anew.

    Raises:
        ConfigurationError: the data do not fit the victim, there are too few images, or a cache is asked for where
            there are several clients or batch sizes.
    """

    def __init__(
        self,
        *,
        clients: Sequence[Client],
        data: LightningDataModule,
        features: UpdateFeatures,
        batch_sizes: Sequence[int] = (1,),
        together: int = 256,
        images: int | None = None,
        tune: int = 1000,
        seed: int = 0,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        if not clients or not batch_sizes or min(*batch_sizes, together, tune, 1 if images is None else images) < 1:
            raise ConfigurationError("pairs need a client, and batch_sizes, together, images and tune of at least 1.")
        if cache is not None and (len(clients) > 1 or len(batch_sizes) > 1):
            raise ConfigurationError("a cache holds the updates of one client with one batch size; leave it out.")
        self.clients, self.features = list(clients), features
        self.batch_sizes, self.together, self.seed = tuple(batch_sizes), together, seed
        self.prior = self._split(data, "prior", images)
        self.tune = self._split(data, "tune", tune)
        largest = max(batch_sizes)
        if min(len(self.prior[0]), len(self.tune[0])) < largest:
            raise ConfigurationError(f"there are fewer images than one update of {largest} takes; use more.")
        self.cache: PairCache | None = None
        if cache is not None:
            self.cache = PairCache(cache, settings=self._settings(), row=(features.tokens, features.width))

    def _split(self, data: LightningDataModule, name: Literal["prior", "tune"], most: int | None) -> Images:
        images, labels, ids = split_for(data, name, self.clients[0].victim)
        if most is None or most >= len(images):
            return images, labels, ids
        kept = torch.randperm(len(images), generator=generator("pairs", self.seed, name))[:most]
        return images[kept], labels[kept], tuple(ids[row] for row in kept.tolist())

    def fill(self) -> None:
        """Make the pairs of the cache that are not there yet."""
        if self.cache is not None:
            steps = [Step(rows, 0, "0") for rows in self.groups(0).split(self.together)]
            self.cache.fill([partial(self._made, step) for step in steps], rows=self.together)

    def measure(self, updates: int = 2048) -> None:
        """Measure the statistics of the features on about so many updates of every kind."""
        steps = []
        kinds = [(client, size) for client in range(len(self.clients)) for size in self.batch_sizes]
        for client, size in kinds:
            wanted = min(max(updates // len(kinds), 64), len(self.prior[0]) // size)
            order = torch.randperm(len(self.prior[0]), generator=generator("statistics", self.seed, size))
            rows = order[: wanted * size].view(wanted, size)
            steps += [Step(part, client, "statistics") for part in rows.split(self.together)]
        self.features.fit(torch.cat([self._made(step) for step in steps]))

    def _made(self, step: Step) -> Tensor:
        return self.raw(self.batch(self.prior, step), step.client).cpu()

    def groups(self, epoch: int) -> Tensor:
        """The updates of an epoch of one batch size: rows of the prior split, (updates, B); a rest is left out."""
        size, images = self.batch_sizes[0], len(self.prior[0])
        order = torch.randperm(images, generator=generator("groups", self.seed, epoch))
        return order[: images // size * size].view(-1, size)

    def _settings(self) -> dict[str, str | int]:
        client = self.clients[0]
        return {
            "victim": weights_sha256(client.victim),
            "local": json.dumps(local_of(client.attacker_simulate())),
            "batch_norm": client.threat_model.batch_norm,
            "defense": str(client.defense),
            "client_seed": client.seed,
            "features": self.features.settings.model_dump_json(),
            "image_ids_sha256": ids_hash(self.prior[2]),
            "batch_size": self.batch_sizes[0],
            "together": self.together,
            "seed": self.seed,
        }

    def batch(self, split: Images, step: Step) -> Batch:
        """The private batch of one step; its update ids name the step, so that defenses draw anew."""
        images, labels, ids = split
        names = tuple(tuple(ids[row] for row in each) for each in step.rows.tolist())
        return Batch(
            images=images[step.rows],
            labels=labels[step.rows],
            image_ids=names,
            update_ids=tuple(f"{step.name}/{update_id(each)}" for each in names),
        )

    @torch.no_grad()
    def raw(self, batch: Batch, client: int) -> Tensor:
        """Features (U, T, K) of what a client sends, not standardized."""
        chosen = self.clients[client].to(batch.images.device)
        weights = dict(chosen.victim.named_parameters())
        return self.features.to(batch.images.device).raw(chosen(batch).update, weights)

    def on_after_batch_transfer(self, batch: tuple[Batch, int, Tensor | None], _: int) -> Pair:
        """Make the updates of a step where the training runs."""
        private, client, kept = batch
        raw = self.raw(private, client) if kept is None else kept
        return Pair(self.features.to(raw.device).standardized(raw), private.images)

    def train_dataloader(self) -> DataLoader[tuple[Batch, int, Tensor | None]]:
        """The steps of an epoch: with one batch size, each image of the prior split in one update, up to a rest."""
        return DataLoader(_Drawn(self, self.prior), sampler=_Order(self), batch_size=None)

    def val_dataloader(self) -> DataLoader[tuple[Batch, int, Tensor | None]]:
        """The same updates of the tune split each time, for every client and batch size."""
        steps = []
        for client in range(len(self.clients)):
            for size in self.batch_sizes:
                count = len(self.tune[0]) // size
                rows = torch.arange(count * size).view(count, size)
                steps += [Step(part, client, "tune") for part in rows.split(self.together)]
        return DataLoader(_Drawn(self, self.tune), sampler=steps, batch_size=None)


class _Order(Sampler[Step]):
    """The steps of each epoch, which depend on the seed and the number of the epoch alone."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs, self.epoch = pairs, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch, after a restart too."""
        self.epoch = epoch

    def __len__(self) -> int:
        # Epochs of batch sizes that are drawn would differ in length, and Lightning wants one number.
        sizes = self.pairs.batch_sizes
        return max(1, int(len(self.pairs.prior[0]) * len(sizes) / (self.pairs.together * sum(sizes))))

    def __iter__(self) -> Iterator[Step]:
        pairs = self.pairs
        if pairs.cache is not None:
            groups = pairs.groups(0)
            order = torch.randperm(len(groups), generator=generator("order", pairs.seed, self.epoch))
            for kept in order.split(pairs.together)[: len(self)]:
                yield Step(groups[kept], 0, "0", kept)
            return
        draws = generator("pairs", pairs.seed, self.epoch)
        images = len(pairs.prior[0])
        order, place = torch.randperm(images, generator=draws), 0
        for _ in range(len(self)):
            size = pairs.batch_sizes[int(torch.randint(len(pairs.batch_sizes), (), generator=draws))]
            client = int(torch.randint(len(pairs.clients), (), generator=draws))
            count = min(pairs.together, images // size) * size
            if place + count > images:
                order, place = torch.randperm(images, generator=draws), 0
            yield Step(order[place : place + count].view(-1, size), client, str(self.epoch))
            place += count


class _Drawn(Dataset[tuple[Batch, int, Tensor | None]]):
    def __init__(self, pairs: Pairs, split: Images) -> None:
        self.pairs, self.split = pairs, split

    def __getitem__(self, step: Step) -> tuple[Batch, int, Tensor | None]:
        cache = self.pairs.cache
        kept = None if step.kept is None or cache is None else cache[step.kept]
        return self.pairs.batch(self.split, step), step.client, kept
