"""The floor of label inference: labels drawn at random, which read nothing."""

from torch import Tensor

from gibench.labels.base import LabelSource
from gibench.needs import Needs
from gibench.seeding import uniform_rows
from gibench.types import Observation


class RandomLabels(LabelSource):
    """B labels, each uniform over the K classes, from the attacker's seed of the update; in ascending order.

    Raises:
        ThreatModelError: when the batch size is hidden.
    """

    needs = Needs(batch_size=("known",))

    def forward(self, observation: Observation) -> Tensor:
        """See `LabelSource`."""
        size = self.check(observation)
        drawn = uniform_rows((size,), observation.seeds, "random labels")
        device = next(iter(observation.update.values())).device
        return (drawn * observation.num_classes).long().sort(1).values.to(device)
