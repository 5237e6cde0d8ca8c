"""Label sources: where an attack takes the private labels from before it searches the images."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from gibench.needs import Needs
from gibench.types import Observation


class LabelSource(nn.Module, ABC):
    """Labels of U private batches."""

    needs = Needs()
    infers = True
    """Whether the labels are the attack's own finding, to be scored."""

    @abstractmethod
    def forward(self, observation: Observation) -> Tensor:
        """Return (U, B), int64, in ascending order where the rule only counts.

        Raises RefusalError when the victim cannot serve the rule, and ThreatModelError when `needs` is not granted.
        """

    def simulations(self, observation: Observation) -> int:
        """How many client updates the rule simulates to answer for one update: its cost."""
        return 0

    def check(self, observation: Observation) -> int:
        """Return B. Raises ThreatModelError unless the threat model grants what the rule needs."""
        self.needs.check(observation.threat_model, type(self).__name__)
        return observation.known_batch_size()
