"""The processes of a run under Lightning's DDP: who this one is, and how they agree.

Updates are attacked independently, so that there are no gradients to add up: processes only tell each other what to do
and what is recorded. Over gloo, on GPUs as well, because it waits for slow processes as long as it must.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy as FabricDDP
from lightning.pytorch.strategies.ddp import DDPStrategy

from gibench.runs.supervisor import is_supervised

T = TypeVar("T")

PATIENCE = timedelta(days=30)  # how long a process waits for the others: a group may take hours
FIRST = 0  # the rank that plans, writes tables and prints


class Processes:
    """All processes of a run, seen from one of them; they join on construction, without a word from Lightning.

    Args:
        accelerator: Lightning's.
        devices: processes on each node; each gets a GPU, or its share of the cores.
        nodes: machines.
    """

    def __init__(self, *, accelerator: str, devices: int, nodes: int) -> None:
        for logger in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        self.accelerator, self.devices, self.nodes = accelerator, devices, nodes
        strategy = FabricDDP(**self._options()) if devices * nodes > 1 else "auto"
        self.fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)
        self.fabric.launch()

    @property
    def rank(self) -> int:
        """Which process this is, from 0."""
        return int(self.fabric.global_rank)

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.fabric.world_size)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that plans, writes tables and prints."""
        return self.rank == FIRST

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device(self.fabric.device)

    def for_trainer(self) -> dict[str, Any]:
        """Lightning's arguments for a trainer that uses these processes and starts no others."""
        strategy = DDPStrategy(**self._options()) if self.count > 1 else "auto"
        return {
            "accelerator": self.accelerator,
            "devices": self.devices,
            "num_nodes": self.nodes,
            "strategy": strategy,
            "use_distributed_sampler": False,  # the data module gives each process its groups
        }

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process go through the block alone: it may download what the others then find."""
        if not self.is_first:
            self.wait()
        try:
            yield
        finally:
            if self.is_first:
                self.wait()

    def wait(self) -> None:
        """Return once every process is here."""
        self.fabric.barrier()

    def tell(self, value: T) -> T:
        """Return the first process's value, in every process."""
        told: T = self.fabric.broadcast(value, src=FIRST)
        return told

    def collect(self, value: T) -> list[T]:
        """Return the values of all processes in the first one, by rank, and nothing in the others."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.is_first else None
        torch.distributed.gather_object(value, values, dst=FIRST)
        return values or []

    def _options(self) -> dict[str, Any]:
        """Of both of Lightning's strategies. A supervised process knows its rank, whatever else runs on the cluster."""
        return {
            "process_group_backend": "gloo",
            "timeout": PATIENCE,
            "cluster_environment": LightningEnvironment() if is_supervised() else None,
        }
