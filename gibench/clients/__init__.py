"""Clients: what a federated participant computes from its private images, and what of it the attacker sees."""

from gibench.clients.aggregation import SecureAggregation
from gibench.clients.base import Client
from gibench.clients.fedavg import FedAvg
from gibench.clients.fedsgd import FedSGD

__all__ = ["Client", "FedAvg", "FedSGD", "SecureAggregation"]
