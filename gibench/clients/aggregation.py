"""Secure aggregation: the server sees only the exact mean of several clients' updates (Bonawitz et al. 2017)."""

from functools import partial

from torch import Tensor

from gibench.clients.base import Client
from gibench.errors import ConfigurationError, ShapeError
from gibench.types import Simulate, Update


class SecureAggregation(Client):
    """Average the updates of `clients` clients that all do what `client` does.

    The private batch of B images is cut into `clients` equal parts in order, one for each client; attacker and scorer
    see one update with B images behind it.

    Args:
        client: what each of them does; its victim, threat model and seed are kept.
        clients: how many are averaged.

    Raises:
        ShapeError: when B is not a multiple of `clients`.
    """

    def __init__(self, client: Client, *, clients: int) -> None:
        if clients < 1:
            raise ConfigurationError(f"clients is {clients}; aggregate at least 1.")
        if client.defense is not None:
            raise ConfigurationError(
                f"the sum of {client.defense} over clients has no density here; aggregate undefended ones."
            )
        super().__init__(
            client.victim, update=client.threat_model.update, threat_model=client.threat_model, seed=client.seed
        )
        self.client = client
        self.victim = client.victim  # one model, so that whoever sets its mode sets it for all
        self.clients = clients

    def simulate(self, images: Tensor, labels: Tensor) -> Update:
        """The mean of the clients' updates; see `Client.simulate`."""
        return _mean(self.client.simulate, self.clients, images, labels)

    def attacker_simulate(self) -> Simulate:
        """The mean of what the attacker can simulate of each client."""
        return partial(_mean, self.client.attacker_simulate(), self.clients)

    @property
    def gradients(self) -> int:
        """Those of all clients, which are simulated together."""
        return self.clients * self.client.gradients


def _mean(simulate: Simulate, clients: int, images: Tensor, labels: Tensor) -> Update:
    if images.shape[1] % clients:
        raise ShapeError(f"{images.shape[1]} images do not divide among {clients} clients; change batch_size.")
    parts = [part.unflatten(1, (clients, -1)).flatten(0, 1) for part in (images, labels)]
    return {name: part.unflatten(0, (-1, clients)).mean(1) for name, part in simulate(*parts).items()}
