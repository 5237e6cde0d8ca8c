"""Labels that the threat model grants."""

import torch
from torch import Tensor

from gibench.errors import ThreatModelError
from gibench.labels.base import LabelSource
from gibench.needs import Needs
from gibench.types import Observation


class Given(LabelSource):
    """The ordered labels where they are known; else the known counts, written out in ascending order."""

    needs = Needs(labels=("ordered", "counts"))
    infers = False

    def forward(self, observation: Observation) -> Tensor:
        """See `LabelSource`."""
        if observation.labels is not None:
            return observation.labels
        if observation.label_counts is None:
            raise ThreatModelError(
                "the labels are not known; set threat_model.labels, or give the attack a label rule."
            )
        classes = torch.arange(observation.num_classes, device=observation.label_counts.device)
        return torch.stack([classes.repeat_interleave(counts) for counts in observation.label_counts])
