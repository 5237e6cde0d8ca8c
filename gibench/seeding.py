"""Random numbers that depend on names only: never on order, grouping, device or the number of workers (rule R17).

Every update carries its own seed, derived from the scenario's seed and the identity of its images. Tensors for U
updates are drawn row by row from one CPU generator per row, so that a row is the same whether it is drawn alone or
with others.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def derive(*parts: str | int) -> int:
    """Return a 63-bit seed that depends on all `parts` and nothing else."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def attacker_seed(seed: int, update_id: str) -> int:
    """The seed of the attacker's random numbers for one update of a scenario."""
    return derive(seed, "attacker", update_id)


def client_seed(seed: int, update_id: str) -> int:
    """The seed of what the client draws for one update of a scenario, which no attacker is told."""
    return derive(seed, "client", update_id)


def generator(*parts: str | int) -> torch.Generator:
    """Return a CPU generator seeded by `derive(*parts)`."""
    return torch.Generator().manual_seed(derive(*parts))


def normal_rows(shape: Sequence[int], seeds: Sequence[int], *purpose: str | int) -> Tensor:
    """Draw N(0, 1) of shape (U, *shape) in float64, row u from `seeds[u]` and `purpose`."""
    rows = [torch.randn(*shape, generator=generator(seed, *purpose), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def uniform_rows(shape: Sequence[int], seeds: Sequence[int], *purpose: str | int) -> Tensor:
    """Draw U(0, 1) of shape (U, *shape) in float64, row u from `seeds[u]` and `purpose`."""
    rows = [torch.rand(*shape, generator=generator(seed, *purpose), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)
