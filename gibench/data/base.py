"""The interface of all data sets: private batches to attack, and the three splits behind them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

from lightning import LightningDataModule
from torch import from_numpy
from torch.utils.data import DataLoader

from gibench.data.collection import Collection
from gibench.data.groups import Groups, grouped, to_pixels, update_id
from gibench.data.samplers import SamplerName, check_k, draw
from gibench.data.shifts import ShiftName
from gibench.data.splits import SPLIT_NAMES, Split, SplitName, ids_hash, shuffled
from gibench.data.variants import Variant, vary
from gibench.errors import ConfigurationError
from gibench.types import Batch


class ImageDataModule(LightningDataModule, ABC):
    """Private batches of a data set, in fixed groups; a subclass says where the images come from.

    `predict_dataloader` yields a Batch of U updates of B images each. Which images form an update depends on the seed,
    the labels and the image ids; each image is used at most once, and a longer run extends a shorter one.

    Args:
        batch_size: B, private images per update.
        updates: how many private batches are attacked.
        together: U, updates per group. The last group takes one more rather than leave a group of one: the
            wrong-update control needs a partner.
        sampler: labels within a batch: "natural" (random), "distinct", "k_per_class" (k images from each of B / k
            classes) or "one_class".
        k: for the sampler "k_per_class", and for no other.
        seed: of the order in which images are used; the splits do not depend on it.
        split_for_attack: "score", or "tune" to choose hyper-parameters.
        classes: only the images of these classes, by number, in all three splits; None is all. Labels, ids, K and the
            split of an image stay.
        size: pixels per side to which square images are resized (bilinear, antialiased); None leaves them.
        shift: other pixels of the same images, see `gibench.data.shifts`; None is none.
        synthetic: "dct" adds as many images without content to the prior split, see `gibench.data.synthetic`, with
            random labels; for auxiliary data of an attacker, as floors would count them, too.

    `size` and `shift` add to the ids ("cifar10/test/00123+gray"), and so to every hash of them; which images are
    attacked, and in which order, stays. Floors come from the prior split of the data that are attacked, whatever the
    attacker has learned from: an attacker with other data is held against one who knows more, never less.

    Attributes:
        name: of the data set, the first part of its image ids.

    Raises:
        ConfigurationError: for arguments that do not fit together, when the split lasts for fewer updates, or lacks a
            class.
        DataNotFoundError, ImageRangeError, NonFiniteError, ShapeError: on first use, when the images are read.
    """

    name: str

    def __init__(
        self,
        *,
        batch_size: int = 1,
        updates: int = 64,
        together: int = 32,
        sampler: SamplerName = "natural",
        k: int | None = None,
        seed: int = 0,
        split_for_attack: Literal["tune", "score"] = "score",
        classes: Sequence[int] | None = None,
        size: int | None = None,
        shift: ShiftName | None = None,
        synthetic: Literal["dct"] | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # where processes outnumber groups
        least = {"batch_size": 1, "updates": 1, "together": 2}
        for argument, value in {"batch_size": batch_size, "updates": updates, "together": together}.items():
            if value < least[argument]:
                raise ConfigurationError(f"{argument} is {value}; set it to {least[argument]} or more.")
        if sampler not in get_args(SamplerName):
            raise ConfigurationError(f"sampler is {sampler!r}; choose one of {', '.join(get_args(SamplerName))}.")
        if sampler == "k_per_class":
            check_k(k, batch_size)
        elif k is not None:
            raise ConfigurationError(f"k is {k} but sampler {sampler!r} has no k; use 'k_per_class' or leave k out.")
        if split_for_attack not in ("tune", "score"):
            raise ConfigurationError(f"split_for_attack is {split_for_attack!r}; choose 'tune' or 'score'.")
        self.batch_size, self.updates, self.together = batch_size, updates, together
        self.sampler: SamplerName = sampler
        self.k, self.seed = k, seed
        self.split_for_attack: SplitName = split_for_attack
        self.variant = Variant.checked(classes, size, shift, synthetic)
        self._finished: frozenset[str] = frozenset()
        self._share = slice(None)

    @abstractmethod
    def collect(self) -> Collection:
        """Find the data set, or download it where that was asked for; called once."""

    @cached_property
    def _collection(self) -> Collection:
        return vary(self.collect(), self.variant, self.name)

    @cached_property
    def _batches(self) -> list[list[int]]:
        """Per update, the positions of its images in the attacked pool."""
        pool = self._collection.pools[self.split_for_attack]
        order = shuffled([name.removesuffix(self.variant.tag) for name in pool.ids], "order", self.seed)
        labels = pool.labels[order].tolist()
        drawn = draw(labels, sampler=self.sampler, batch_size=self.batch_size, updates=self.updates, k=self.k)
        return [[order[place] for place in places] for places in drawn]

    @property
    def title(self) -> str:
        """The name with what was done to the data set, such as "cifar10-classes0-4-gray"."""
        return self.variant.title(self.name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._collection.image_shape

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return self._collection.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The K names, or None where they are unknown."""
        return self._collection.class_names

    def split(self, name: SplitName) -> Split:
        """Return a copy of the images of one split (CIFAR-10's prior: 614 MB)."""
        if name not in SPLIT_NAMES:
            raise ConfigurationError(f"there is no split {name!r}; choose one of {', '.join(SPLIT_NAMES)}.")
        pool = self._collection.pools[name]
        return Split(to_pixels(pool.images), from_numpy(pool.labels.copy()), pool.ids)

    def split_hashes(self) -> dict[str, str]:
        """Return per split the SHA-256 of its sorted image ids (rule R3)."""
        return {name: ids_hash(self._collection.pools[name].ids) for name in SPLIT_NAMES}

    def describe(self) -> dict[str, Any]:
        """Return what the manifest says of the data: equal descriptions mean equal private batches.

        `content_sha256` covers all labels and the pixels of the score split. Where the files lie and how many updates
        are attacked together is left out, because no result depends on it.
        """
        pools = self._collection.pools
        content = hashlib.sha256()
        for name in SPLIT_NAMES:
            content.update(pools[name].labels.tobytes())
        content.update(f"{pools['score'].images.shape} {pools['score'].images.dtype}".encode())
        content.update(pools["score"].images.tobytes())
        return {
            "name": self.title,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "content_sha256": content.hexdigest(),
            "split_hashes": self.split_hashes(),
            "split_sizes": {name: len(pools[name].ids) for name in SPLIT_NAMES},
            "split": self.split_for_attack,
            "sampler": self.sampler,
            "k": self.k,
            "batch_size": self.batch_size,
            "updates": self.updates,
            "seed": self.seed,
        }

    def prepare_data(self) -> None:
        """Find or download the data set; Lightning calls this in one process."""
        _ = self._collection

    def setup(self, stage: str | None = None) -> None:
        """Draw the private batches; Lightning calls this in every process."""
        _ = self._batches

    def skip(self, update_ids: Iterable[str]) -> None:
        """Leave out the groups whose updates are all in `update_ids`.

        A group with an unfinished update comes back whole, so that a resumed run computes what an unbroken one does.
        """
        self._finished = frozenset(update_ids)

    def share(self, rank: int, count: int) -> None:
        """Leave to this process, `rank` of `count`, every count-th of the groups that `skip` leaves.

        Groups stay whole: processes without a group do nothing, so that results are those of one process, bit by bit.
        """
        self._share = slice(rank, None, count)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return the groups that are not finished, or this process's share of them, one Batch each, in fixed order."""
        pool = self._collection.pools[self.split_for_attack]
        groups = [[self._batches[row] for row in rows] for rows in grouped(self.updates, self.together)]
        left = [group for group in groups if not self._is_finished(group)]
        return DataLoader(Groups(pool, left[self._share]), batch_size=None)

    def update_ids(self) -> list[str]:
        """Return the names of all updates, finished or not, in the order of the groups."""
        ids = self._collection.pools[self.split_for_attack].ids
        return [update_id([ids[position] for position in row]) for row in self._batches]

    def _is_finished(self, group: list[list[int]]) -> bool:
        ids = self._collection.pools[self.split_for_attack].ids
        return all(update_id([ids[position] for position in row]) in self._finished for row in group)
