"""The client: turns private images into the observation that the server, and so the attack, gets."""

from abc import ABC, abstractmethod
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.clients.batch_norm import (
    batch_statistics,
    has_batch_norm,
    has_running_statistics,
    use_batch_statistics,
)
from gibench.defenses import Defense, Private, Release
from gibench.engine.memory import BUDGET, bytes_per_update
from gibench.errors import ShapeError, ThreatModelError
from gibench.seeding import attacker_seed, client_seed
from gibench.types import Batch, Observation, Simulate, ThreatModel, Update, check_images
from gibench.victims import Victim


class Client(nn.Module, ABC):
    """What a federated client does with U private batches at once; a kind of client is its `simulate`.

    The client works on a copy of the victim, in evaluation mode (dropout is off), and owns the BatchNorm regime.

    Args:
        victim: the global model that the server sent.
        threat_model: what the attacker is given. None grants the published default (labels and batch size known, honest
            server) and reads the victim's stage off the victim; it is refused for a victim with BatchNorm, whose regime
            must be stated.
        seed: the random numbers of attacker and client are derived from it and the update's id.
        defense: what the client does to its update before it sends it; None is nothing.

    Raises:
        ThreatModelError: when the threat model contradicts the victim or the kind of client.
    """

    def __init__(
        self,
        victim: Victim,
        *,
        update: str,
        threat_model: ThreatModel | None,
        seed: int,
        defense: Defense | None = None,
    ) -> None:
        super().__init__()
        self.threat_model = threat_model or default_threat_model(victim, update, defense)
        check_threat_model(self.threat_model, victim, update, defense)
        self.defense = defense
        self.victim = deepcopy(victim).eval().requires_grad_(False)
        if self.threat_model.batch_norm in ("private", "shared"):
            use_batch_statistics(self.victim)
        self.seed = seed
        self._bytes: dict[int, int] = {}

    @abstractmethod
    def simulate(self, images: Tensor, labels: Tensor) -> Update:
        """Return the updates that `images` and `labels` cause; differentiable in images and in soft labels.

        Args:
            images: (U, B, C, H, W) in [0, 1].
            labels: (U, B), int64, or class probabilities (U, B, K).

        Returns:
            Per parameter (U, *shape), as a gradient: what the server subtracts from its weights, up to the rate.
        """

    def attacker_simulate(self) -> Simulate:
        """Return the simulation that the threat model hands to the attacker."""
        return self.simulate

    @property
    def gradients(self) -> int:
        """How many gradients of the victim the attacker's simulation of one update takes; for the memory budget."""
        return 1

    def forward(self, batch: Batch) -> Observation:
        """Compute the updates of `batch` and hand over what the threat model grants; no private image leaves."""
        self._check(batch)
        self.victim.eval()
        release = self._release(batch)
        known, classes = self.threat_model, self.victim.num_classes
        size = batch.images.shape[1] if known.batch_size == "known" else None
        counts = F.one_hot(batch.labels, classes).sum(1)
        return Observation(
            update=release.update,
            simulate=self.attacker_simulate(),
            victim=self.victim,
            threat_model=known,
            image_shape=self.victim.image_shape,
            num_classes=classes,
            batch_size=size,
            labels=batch.labels.clone() if known.labels == "ordered" else None,
            label_counts={"none": None, "set": counts.clamp(max=1)}.get(known.labels, counts),
            batch_statistics=batch_statistics(self.victim, batch.images) if known.batch_norm == "shared" else None,
            defense=self.defense if known.defense == "known" else None,
            randomness=release.randomness if known.defense_randomness == "known" else None,
            seeds=tuple(attacker_seed(self.seed, update_id) for update_id in batch.update_ids),
            bytes_per_update=self._memory(size or 1),
        )

    def target(self, batch: Batch) -> Batch:
        """Return the batch that reconstructions are scored against: the private one, or what the defense says."""
        if self.defense is None:
            return batch
        return batch.model_copy(update={"images": self.defense.target(self._private(batch))})

    def _release(self, batch: Batch) -> Release:
        """What all clients send, in parts that keep to the memory budget."""
        rows = max(1, BUDGET // self._memory(batch.images.shape[1]))
        with torch.no_grad():
            parts = [self._sample(batch, start, start + rows) for start in range(0, len(batch.images), rows)]
        update, randomness = (_stack([part[field] for part in parts]) for field in (0, 1))
        return Release(update, randomness)

    def _sample(self, batch: Batch, start: int, stop: int) -> Release:
        private = self._private(batch, start, stop)
        if self.defense is None:
            return Release(self.simulate(private.images, private.labels), {})
        return self.defense.sample(private)

    def _private(self, batch: Batch, start: int = 0, stop: int | None = None) -> Private:
        return Private(
            images=batch.images[start:stop],
            labels=batch.labels[start:stop],
            seeds=tuple(client_seed(self.seed, update_id) for update_id in batch.update_ids[start:stop]),
            victim=self.victim,
            simulate=self.simulate,
        )

    def _memory(self, size: int) -> int:
        if size not in self._bytes:
            self._bytes[size] = bytes_per_update(self.victim, size, gradients=self.gradients)
        return self._bytes[size]

    def _check(self, batch: Batch) -> None:
        check_images(batch.images)
        if tuple(batch.images.shape[2:]) != self.victim.image_shape:
            wanted, found = self.victim.image_shape, tuple(batch.images.shape[2:])
            raise ShapeError(
                f"the victim takes images of shape {wanted}, the data has {found}; "
                "set the victim's image_shape, or choose other data."
            )
        low, high = int(batch.labels.min()), int(batch.labels.max())
        if low < 0 or high >= self.victim.num_classes:
            raise ShapeError(
                f"labels span {low} to {high}, the victim has {self.victim.num_classes} classes; set its num_classes."
            )


def _stack(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:  # copying the updates would cost a quarter of the time that making them does
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def default_threat_model(victim: Victim, update: str, defense: Defense | None = None) -> ThreatModel:
    """The published default, with the victim's stage read off the victim and a defense that is known (rule R15)."""
    if has_batch_norm(victim):
        raise ThreatModelError(
            f"{victim.architecture} has BatchNorm layers, whose regime decides what leaks; "
            "pass threat_model=ThreatModel(batch_norm='eval' or 'private' or 'shared', ...)."
        )
    flags = {"victim": victim.stage, "batch_norm": "absent", "update": update}
    return ThreatModel.model_validate({**flags, "defense": "known" if defense else "none"})


def check_threat_model(threat_model: ThreatModel, victim: Victim, update: str, defense: Defense | None = None) -> None:
    """Raise ThreatModelError where the threat model contradicts what victim and client are."""
    if threat_model.update != update:
        raise ThreatModelError(f"this client sends {update!r}; set threat_model.update to {update!r}.")
    if threat_model.victim != victim.stage:
        raise ThreatModelError(f"the victim's stage is {victim.stage!r}; set threat_model.victim to {victim.stage!r}.")
    if has_batch_norm(victim) == (threat_model.batch_norm == "absent"):
        fitting = "'eval', 'private' or 'shared'" if has_batch_norm(victim) else "'absent'"
        raise ThreatModelError(f"for {victim.architecture} set threat_model.batch_norm to {fitting}.")
    if threat_model.batch_norm == "eval" and not has_running_statistics(victim):
        raise ThreatModelError(
            f"{victim.architecture} keeps no running statistics; set threat_model.batch_norm to 'private' or 'shared'."
        )
    if threat_model.batch_size == "unknown" and threat_model.labels in ("counts", "ordered"):
        raise ThreatModelError("whoever knows the labels counts them; set threat_model.batch_size to 'known'.")
    if defense is None and threat_model.defense != "none":
        raise ThreatModelError("this client has no defense; set threat_model.defense to 'none', or give it one.")
    if defense is not None and threat_model.defense == "none":
        raise ThreatModelError(f"this client has {defense}; set threat_model.defense to 'known' or 'unknown'.")
    if threat_model.defense_randomness == "known" and threat_model.defense != "known":
        raise ThreatModelError(
            "whoever knows what a defense drew knows the defense; set threat_model.defense to 'known'."
        )
    if defense is not None:
        defense.check(victim, update)
