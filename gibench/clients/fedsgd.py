"""FedSGD: one gradient of the whole private batch (McMahan et al. 2017, with one local step)."""

from torch import Tensor

from gibench.clients.base import Client
from gibench.clients.per_update import batch_gradient, for_each_update, weights
from gibench.types import ThreatModel, Update
from gibench.victims import Victim


class FedSGD(Client):
    """Send the gradient of the mean cross-entropy: g = (1/B) sum_b grad_theta l(F_theta(x_b), y_b).

    Args: as in `Client`.
    """

    def __init__(self, victim: Victim, *, threat_model: ThreatModel | None = None, seed: int = 0) -> None:
        super().__init__(victim, update="gradient", threat_model=threat_model, seed=seed)

    def simulate(self, images: Tensor, labels: Tensor) -> Update:
        """The gradients of U batches; see `Client.simulate`."""
        parameters = weights(self.victim)
        gradient = batch_gradient(self.victim)
        return for_each_update(lambda image, label: gradient(parameters, image, label), images, labels)
