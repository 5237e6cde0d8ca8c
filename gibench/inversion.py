"""The main job on one screen: observe the updates of clients, attack them, score what leaks."""

import torch
from lightning import LightningModule
from torch import Tensor

from gibench.attacks import Attack
from gibench.clients import Client
from gibench.diagnostics import probe_second_derivatives
from gibench.errors import ConfigurationError, RefusalError
from gibench.metrics import ErrorsInPictures, ImageQuality
from gibench.precision import current, exact, parity
from gibench.progress import stopwatch
from gibench.scoring import Scored, Scorer
from gibench.types import Batch


class GradientInversion(LightningModule):
    """Attack the updates of clients, batch by batch, and score what leaks.

        Trainer(inference_mode=False).predict(GradientInversion(client, attack), data)

    returns one `Scored` for each group of updates: records, reconstructions and private images.

    Args:
        client: makes the observation.
        attack: gets the observation, and nothing else.
        quality: the metrics; None takes all that are available.
        fallback: (C, H, W), what a failed reconstruction scores as; None is mid-gray. A suite passes the prior's mean.
        errors: what the errors look like; None knows neither class means nor other images of the split.
        scenario, name: what the records are filed under.

    Raises:
        ThreatModelError: when the attack needs more than the client's threat model grants.
    """

    def __init__(
        self,
        client: Client,
        attack: Attack,
        *,
        quality: ImageQuality | None = None,
        fallback: Tensor | None = None,
        errors: ErrorsInPictures | None = None,
        scenario: str = "scenario",
        name: str = "attack",
    ) -> None:
        super().__init__()
        attack.check(client.threat_model)
        self.client = client
        self.attack = attack
        self.name = name
        gray = torch.full(client.victim.image_shape, 0.5)
        self.scorer = Scorer(
            scenario=scenario,
            quality=quality or ImageQuality(),
            fallback=gray if fallback is None else fallback,
            seed=client.seed,
            errors=errors or ErrorsInPictures(),
        )

    def on_predict_start(self) -> None:
        """Check, before the first update, that the attack can differentiate."""
        if torch.is_inference_mode_enabled():
            raise ConfigurationError("attacks need gradients; pass Trainer(inference_mode=False).")
        precision = current(str(self.trainer.precision))
        device, architecture = self.client.victim.mean.device.type, self.client.victim.architecture
        self.scorer.precision = precision, parity(precision, device=device, architecture=architecture)
        if self.attack.differentiates:
            victim = self.client.victim
            probe_second_derivatives(victim, victim.image_shape, victim.num_classes)

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Scored:
        """Observe, attack and score one group of updates."""
        batch = batch.to(self.client.victim.mean.dtype)
        with torch.enable_grad():
            with exact(batch.images.device.type):  # mixed precision is the attacker's saving, not the client's rounding
                observation = self.client(batch)  # what the server sees
                batch = self.client.target(batch)  # what an answer is held against
            try:
                with stopwatch(batch.images.device) as watch:
                    reconstruction = self.attack(observation)  # what the attacker makes of it
                    seconds = watch.seconds()
            except RefusalError as refusal:
                return self.scorer.refused(self.name, str(refusal), batch)
        with exact(batch.images.device.type):
            return self.scorer(self.name, reconstruction, batch, seconds=seconds)
