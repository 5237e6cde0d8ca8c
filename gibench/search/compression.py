"""Fewer rows of a Jacobian with the same normal matrix, or about the same: what its preconditioner is made of."""

from typing import NamedTuple

import torch
from torch import Tensor

from gibench.hashing import FeatureHash
from gibench.seeding import generator
from gibench.types import Update

CAPTURED = 1e-4  # relative error of lengths, above which a tensor is taken as it is


class Basis(NamedTuple):
    """Orthonormal columns: left (O, r) and right (I, r)."""

    left: Tensor
    right: Tensor

    def project(self, changes: Tensor) -> Tensor:
        """Return (k, r (O + I)) of changes (k, O, I), isometric on the tangent space at left M right^T."""
        inner = self.left.mT @ changes
        outer = (changes - self.left @ inner) @ self.right
        return torch.cat([inner.flatten(1), outer.flatten(1)], 1)


class Compression:
    r"""Rows of the Jacobian of an update, compressed.

    The gradient of a linear layer, (O, I), is a sum of B products delta_b h_b^T, so that whatever the images do, its
    change lies in the tangent space at a matrix of rank B, of r (O + I) dimensions instead of O I, onto which it is
    projected without loss. What a likelihood's weights or masks have changed is found out, and left alone. Then, where
    more than `buckets` rows are left, they are hashed to so many.

    Args:
        simulated: the update at the point, name -> (1, *shape).
        changes: some columns of the Jacobian, name -> (k, *shape).
        rank: B.
        buckets: None never hashes.
    """

    def __init__(self, simulated: Update, changes: Update, *, rank: int, buckets: int | None) -> None:
        self.bases = {}
        for name, change in changes.items():
            basis = _basis(simulated[name][0], rank) if name in simulated and change.ndim == 3 else None
            if basis is not None and _captures(basis := _to(basis, change), change):
                self.bases[name] = basis
        parts = self._project(changes)
        self.width = sum(part.shape[1] for part in parts.values())
        self.hash: FeatureHash | None = None
        if buckets is not None and self.width > buckets:
            shapes = {name: part.shape[1:] for name, part in parts.items()}
            self.hash = FeatureHash(shapes=shapes, buckets=buckets, seed=0).to(next(iter(parts.values())).device)
            self.width = buckets

    def __call__(self, changes: Update) -> Tensor:
        """Return (k, width) of changes, name -> (k, *shape)."""
        parts = self._project(changes)
        return torch.cat(list(parts.values()), 1) if self.hash is None else self.hash(parts)

    def _project(self, changes: Update) -> Update:
        return {
            name: self.bases[name].project(change) if name in self.bases else change.flatten(1)
            for name, change in changes.items()
        }


def _basis(matrix: Tensor, rank: int) -> Basis | None:
    """Bases of the column and row space of a matrix (O, I) of the given rank; None where they would save little."""
    if 2 * rank * sum(matrix.shape) > matrix.numel():
        return None
    start = torch.randn(matrix.shape[1], rank, generator=generator("basis", 0), dtype=torch.float64)
    left = torch.linalg.qr(matrix @ start.to(matrix)).Q
    return Basis(left, torch.linalg.qr(matrix.mT @ left).Q)


def _captures(basis: Basis, changes: Tensor) -> bool:
    lengths, kept = changes.flatten(1).norm(), basis.project(changes).norm()
    return bool((lengths - kept).abs() <= CAPTURED * lengths)


def _to(basis: Basis, like: Tensor) -> Basis:
    return Basis(*(each.to(like) for each in basis))
