"""The attack: from what the server sees to what it makes of it."""

from abc import ABC, abstractmethod

from torch import nn

from gibench.engine import Engine
from gibench.needs import Needs
from gibench.types import Observation, Reconstruction, ThreatModel


class Attack(nn.Module, ABC):
    """Reconstruct the private images of U updates from the observation, and from nothing else (rule R1).

    A row of the result depends on that row of the observation alone: random numbers come from `observation.seeds`.
    """

    needs = Needs()
    engine: Engine | None = None
    """How it simulates updates; None where it simulates none."""

    differentiates = False
    """Whether the attack differentiates the simulated update, for which the victim must have second derivatives."""

    @abstractmethod
    def forward(self, observation: Observation) -> Reconstruction:
        """Return one reconstruction for each update. Raises RefusalError when the victim cannot be served at all."""

    def check(self, threat_model: ThreatModel, name: str | None = None) -> None:
        """Raise ThreatModelError, before anything is computed, unless the threat model grants what the attack needs.

        Args:
            threat_model: the client's.
            name: what the error calls the attack; by default its class.
        """
        self.needs.check(threat_model, name or type(self).__name__)
