"""FedSGD: one gradient of the whole private batch (McMahan et al. 2017, with one local step)."""

from torch import Tensor

from gibench.clients.base import Client
from gibench.defenses import Defense
from gibench.engine.gradient import LocalGradient
from gibench.types import Simulate, ThreatModel, Update
from gibench.victims import Victim


class FedSGD(Client):
    """Send the gradient of the mean cross-entropy: g = (1/B) sum_b grad_theta l(F_theta(x_b), y_b).

    Args: as in `Client`.
    """

    def __init__(
        self,
        victim: Victim,
        *,
        threat_model: ThreatModel | None = None,
        seed: int = 0,
        defense: Defense | None = None,
    ) -> None:
        super().__init__(victim, update="gradient", threat_model=threat_model, seed=seed, defense=defense)

    def simulate(self, images: Tensor, labels: Tensor) -> Update:
        """The gradients of U batches; see `Client.simulate`."""
        return LocalGradient(self.victim)(images, labels)

    def attacker_simulate(self) -> Simulate:
        """The gradient, as an object of which the engine can find a faster way."""
        return LocalGradient(self.victim)
