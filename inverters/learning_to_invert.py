"""Learning to Invert: one forward pass of a network that was trained on pairs of images and updates."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from gibench.attacks import Attack
from gibench.errors import RefusalError
from gibench.needs import Needs
from gibench.precision import exact
from gibench.types import Observation, Reconstruction
from gibench.victims.weights import weights_sha256
from inverters.base import Slots
from inverters.card import Loaded, load_inverter, local_of, probe
from inverters.features import UpdateFeatures

CLOSE = 1e-3
"""Relative difference of probes below which two simulations are the same: rounding and devices stay far below."""


class LearningToInvert(Attack):
    """Read the images out of the update with a network of `gibench fit` (Wu, Chen, Guo, Weinberger, UAI 2023).

    Under a squared error the best network is the posterior mean E[x | g] under the auxiliary images and the client's
    exact likelihood, defense included: amortized, blurry where the update leaves images open, and never worse in
    expectation than the mean image. It costs nothing online: the cost is that of the training.

    What the file was trained for is compared with the observation before anything is computed: victim, kind of update,
    local steps, defense where it is known, and batch size. A `SetInverter` answers every batch size up to its slots,
    and a remark says where it would have named another number than B.

    Args:
        path: of the file.
        moved: accept a victim of the same architecture with other weights than those trained for, to measure what the
            difference costs.

    Raises:
        WeightsError: the file is missing, damaged, no safetensors, or not what its card says.
        RefusalError: on use, it was trained for another scenario; the error names the difference.
    """

    def __init__(self, *, path: str | Path, moved: bool = False) -> None:
        super().__init__()
        self.loaded: Loaded = load_inverter(path)
        granted = {"in_distribution", self.loaded.card.origin}  # who may learn from the first may learn from the second
        self.needs = Needs(prior_data=tuple(sorted(granted)), batch_size=("known",))
        self.moved = moved
        self.network = self.loaded.network
        self.features: UpdateFeatures | None = None
        self.weights_path = Path(path)
        self.weights_sha256 = hashlib.sha256(self.weights_path.read_bytes()).hexdigest()
        self._checked: nn.Module | None = None

    def forward(self, observation: Observation) -> Reconstruction:
        """See `Attack`."""
        self.check(observation.threat_model)
        size = observation.known_batch_size()
        self._check_size(size)
        self._check_kind(observation)
        if self._checked is not observation.victim:
            self._check_weights(observation)
            self._checked = observation.victim
        if self.features is None:
            self.features = self.loaded.features()
        device = next(iter(observation.update.values())).device
        features, network = self.features.to(device), self.network.to(device)
        with torch.no_grad(), exact(device.type):
            read = features(observation.update, dict(observation.victim.named_parameters()))
            # 64-true turns the modules of a task into float64.
            slots: Slots = network(read.to(next(network.parameters()).dtype))
        chosen, remarks = _choose(slots, size)
        return Reconstruction(
            images=chosen.clamp(0, 1),
            labels=None,
            objective=read.square().flatten(1).mean(1),  # standardized, 1 on the pairs: how unlike them the update is
            gradient_evaluations=torch.zeros(observation.updates, dtype=torch.int64),
            remarks=remarks,
        )

    def _check_kind(self, observation: Observation) -> None:
        """Refuse other images, updates or defenses than those trained for."""
        card, known = self.loaded.card, observation.threat_model
        shapes = {name: list(tensor.shape[1:]) for name, tensor in observation.update.items()}
        defense = None if observation.defense is None else str(observation.defense)
        steps_known = known.local_steps == "known"
        differences = [
            ("images of shape", tuple(card.image_shape), observation.image_shape),
            ("updates of the kind", card.update, known.update),
            ("the BatchNorm regime", card.batch_norm, known.batch_norm),
            ("the parameters", *_difference(card.shapes, shapes)),
            ("the local steps", card.local, local_of(observation.simulate) if steps_known else card.local),
            ("the defense", card.defense, card.defense if known.defense == "unknown" else defense),
        ]
        for what, trained, found in differences:
            if trained != found:
                raise RefusalError(
                    f"{self._name()} was trained for {what} {trained}, this client has {found}; {_ADVICE}"
                )

    def _check_weights(self, observation: Observation) -> None:
        """Refuse other weights, and other local steps."""
        if self.moved:
            return
        card, known, victim = self.loaded.card, observation.threat_model, observation.victim
        if weights_sha256(victim) not in card.victims:
            raise RefusalError(
                f"{self._name()} was trained for other weights of the victim {card.architecture}; {_ADVICE} To measure "
                "what the difference costs, set moved: true."
            )
        like = next(victim.parameters())
        if known.local_steps == "known" and len(card.victims) == 1:
            with exact(like.device.type):
                probed = probe(
                    observation.simulate,
                    like=like,
                    image_shape=observation.image_shape,
                    batch_size=card.batch_sizes[0],
                    classes=observation.num_classes,
                )
            trained = torch.tensor(card.probe)
            if not torch.allclose(torch.tensor(probed), trained, rtol=CLOSE, atol=CLOSE * float(trained.max())):
                raise RefusalError(
                    f"{self._name()} was trained for clients that make other updates of the same images; {_ADVICE}"
                )

    def _check_size(self, size: int) -> None:
        card = self.loaded.card
        most = card.slots if card.network == "set" else None
        if size not in card.batch_sizes and (most is None or size > most):
            trained = ", ".join(str(each) for each in card.batch_sizes)
            raise RefusalError(
                f"{self._name()} was trained for batches of {trained}, this client has {size}; {_ADVICE}"
            )

    def _name(self) -> str:
        return f"the inverter {self.loaded.path.name}"


_ADVICE = "train one for this client with `gibench fit`."


def _difference(trained: dict[str, list[int]], found: dict[str, list[int]]) -> tuple[str, str]:
    """The first parameter in which two victims differ, as both have it."""
    for name in sorted(trained.keys() | found.keys()):
        if trained.get(name) != found.get(name):
            return f"{name} {trained.get(name, 'absent')}", f"{name} {found.get(name, 'absent')}"
    return "", ""


def _choose(slots: Slots, size: int) -> tuple[Tensor, tuple[str | None, ...] | None]:
    """The slots of `size` images, and where the network would have named another number."""
    if slots.existence is None:
        return slots.images, None
    named = (slots.existence > 0).sum(1).tolist()
    remarks = tuple(None if count == size else f"names {count} images instead of {size}" for count in named)
    return slots.images[:, :size], remarks if any(remarks) else None
