"""Label inference alone: what a rule reads off the update before any image is searched."""

import torch

from gibench.attacks.base import Attack
from gibench.errors import ConfigurationError
from gibench.labels import LabelSource
from gibench.types import Observation, Reconstruction

GRAY = 0.5


class LabelInference(Attack):
    """Answer with the labels that a rule infers, and with a gray image in every place.

    The images have no content, so that PSNR and everything else that is said of them means nothing; the labels are what
    counts: `gibench.metrics.label_scores`. Only the updates that the rule simulates (LLG+, LLG*) cost gradients.

    Args:
        labels: the rule.

    Raises:
        ConfigurationError: for a source that infers nothing.
        RefusalError, ThreatModelError: as the rule.
    """

    def __init__(self, *, labels: LabelSource) -> None:
        super().__init__()
        if not labels.infers:
            raise ConfigurationError(f"{type(labels).__name__} infers nothing; choose a label rule.")
        self.labels = labels
        self.needs = self.needs.also(labels.needs)

    def forward(self, observation: Observation) -> Reconstruction:
        """See `Attack`."""
        self.check(observation.threat_model)
        labels = self.labels(observation)
        like = next(iter(observation.update.values()))
        return Reconstruction(
            images=torch.full((*labels.shape, *observation.image_shape), GRAY, dtype=like.dtype, device=like.device),
            labels=labels,
            objective=torch.zeros(observation.updates, dtype=like.dtype, device=like.device),
            gradient_evaluations=torch.full((observation.updates,), self.labels.simulations(observation)),
            labels_only=True,
        )
