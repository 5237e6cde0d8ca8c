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
        """Return (U, B), int64. Raises RefusalError when the victim cannot serve the rule."""
