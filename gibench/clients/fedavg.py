"""FedAvg: several local SGD steps, then the difference of the weights (McMahan et al. 2017)."""

from torch import Tensor

from gibench.clients.base import Client
from gibench.defenses import Defense
from gibench.engine.gradient import LocalGradient, batch_gradient, for_each_update, weights
from gibench.errors import ConfigurationError, ShapeError
from gibench.types import Simulate, ThreatModel, Update
from gibench.victims import Victim


class FedAvg(Client):
    """Send the server's weights minus the weights after local SGD: theta_0 - theta_S, which points along the gradient.

    Step s trains on the images s*b ... s*b+b-1 of the private batch, modulo B, in order. With b = B, one step and
    rate 1 this is FedSGD. Where the threat model hides the local steps, the attacker simulates one gradient of the
    whole batch, which has about the direction of the update but not its length.

    Args:
        victim, threat_model, seed, defense: as in `Client`; the defense acts on the difference of the weights.
        steps: number S of local steps.
        local_batch_size: b; None takes the whole private batch in each step.
        rate: local learning rate.

    Raises:
        ShapeError: when the private batch is not a multiple of `local_batch_size`.
    """

    def __init__(
        self,
        victim: Victim,
        *,
        steps: int,
        local_batch_size: int | None = None,
        rate: float = 0.01,
        threat_model: ThreatModel | None = None,
        seed: int = 0,
        defense: Defense | None = None,
    ) -> None:
        if steps < 1 or rate <= 0 or (local_batch_size is not None and local_batch_size < 1):
            raise ConfigurationError("FedAvg needs steps >= 1, rate > 0 and local_batch_size >= 1.")
        super().__init__(victim, update="fedavg", threat_model=threat_model, seed=seed, defense=defense)
        self.steps = steps
        self.local_batch_size = local_batch_size
        self.rate = rate

    def simulate(self, images: Tensor, labels: Tensor) -> Update:
        """The weight differences of U clients; see `Client.simulate`."""
        return self._training()(images, labels)

    def _training(self) -> "LocalTraining":
        return LocalTraining(self.victim, steps=self.steps, size=self.local_batch_size, rate=self.rate)

    def attacker_simulate(self) -> Simulate:
        """The client's own steps where they are known, one gradient of the whole batch where they are not.

        A single step on the whole batch is a gradient, too, and is given as one where `local_batch_size` is None.
        """
        if self.threat_model.local_steps == "unknown":
            return LocalGradient(self.victim)
        whole = self.steps == 1 and self.local_batch_size is None
        return LocalGradient(self.victim, scale=self.rate) if whole else self._training()

    @property
    def gradients(self) -> int:
        """One for each local step that the attacker knows of."""
        return self.steps if self.threat_model.local_steps == "known" else 1


class LocalTraining:
    """images (U, B, C, H, W), labels (U, B) or (U, B, K) -> the weight differences of U clients, as `FedAvg` has them.

    An object of its own: it is handed to attackers, and knows nothing else of the client.
    """

    def __init__(self, victim: Victim, *, steps: int, size: int | None, rate: float) -> None:
        self.victim, self.steps, self.size, self.rate = victim, steps, size, rate

    def __call__(self, images: Tensor, labels: Tensor) -> Update:
        """Train and subtract; differentiable in images and in soft labels."""
        total = images.shape[1]
        size = self.size or total
        if total % size:
            raise ShapeError(
                f"a private batch of {total} does not divide into local batches of {size}; change one of them."
            )
        server = weights(self.victim)
        gradient = batch_gradient(self.victim)

        def local_training(images: Tensor, labels: Tensor) -> Update:
            local = server
            for step in range(self.steps):
                start = step * size % total
                update = gradient(local, images[start : start + size], labels[start : start + size])
                local = {name: weight - self.rate * update[name] for name, weight in local.items()}
            return {name: server[name] - weight for name, weight in local.items()}

        return for_each_update(local_training, images, labels)
