r"""Approximate inverses of J^T J + damping, from a matrix that may be rounded, hashed, old or of low rank.

They only decide how many products conjugate gradients take: those are exact, so that the solution is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gibench.search.compression import Compression
from gibench.search.linearization import Linearization
from gibench.seeding import normal_rows

AT_ONCE = 256
"""Columns of J that are differentiated at once, at most."""
HELD = 2**27
"""Numbers of J that are held at once: half a GiB in float32. More rows are taken in several passes."""
CHANGES = 2**26
"""Numbers of updates that are differentiated at once."""
BLOCK = 1024  # columns of a block of the normal matrix; blocks above the diagonal are copied
PROBES = 8  # random signs behind the scale of the damping
FACTORS = 12  # attempts to factor, each with ten times the damping of the one before

Inverse = Callable[[Tensor], Tensor]


class Preconditioner(ABC):
    """Made at one point, used for several dampings, and at points near by.

    scale: (n,), of the damping: the mean diagonal entry of J^T J in each variable. evaluations: what making it took.
    """

    scale: Tensor
    evaluations: int

    @abstractmethod
    def inverse(self, damping: float) -> tuple[Inverse, bool]:
        """Return about (J^T J + damping * diag(scale))^-1, and whether that was singular to working precision."""


class Full(Preconditioner):
    r"""The Cholesky factor of the normal matrix, from all columns of J.

    Args:
        at: where.
        double: add up and factor the matrix in float64, whatever the type of the columns: of J itself float32 keeps
            what is above 1e-7 of its largest singular value, of J^T J only what is above 3e-4 of it.
        buckets: for each unknown; updates of more coordinates are hashed to so many, in which about all of the lengths
            survive (see `gibench.hashing`). None never hashes.
    """

    def __init__(self, at: Linearization, *, double: bool, buckets: float | None) -> None:
        self._matrix, self.evaluations = normal_matrix(at, double=double, buckets=buckets)
        self.scale = at.mean_by_variable(self._matrix.diagonal().to(at.point))

    def inverse(self, damping: float) -> tuple[Inverse, bool]:
        """See `Preconditioner`."""
        matrix = self._matrix.clone()
        diagonal, scale = matrix.diagonal(), self.scale.to(matrix)
        diagonal += damping * scale
        extra, singular = max(damping, torch.finfo(matrix.dtype).eps), False
        factor, failed = torch.linalg.cholesky_ex(matrix)
        for _ in range(FACTORS):
            if not failed:
                break
            singular = True
            diagonal += extra * scale
            extra *= 10
            factor, failed = torch.linalg.cholesky_ex(matrix)
        else:
            return _scaled(self.scale), True

        def solve(right: Tensor) -> Tensor:
            # Two triangular systems: with one right side, LAPACK's own solution of both takes ten times as long.
            half = torch.linalg.solve_triangular(factor, right.to(factor)[:, None], upper=False)
            whole: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=True)
            return whole[:, 0].to(right)

        return solve, singular


class LowRank(Preconditioner):
    r"""The Nystrom approximation of J^T J, scaled, from products with random directions: all memory is k vectors.

    With A about U diag(l) U^T of rank k, its least entry l_k, and damping mu, the inverse is taken for
    (l_k + mu) U diag(1 / (l + mu)) U^T + I - U U^T, up to a factor (Frangella, Tropp and Udell, SIMAX 2023).

    Args:
        at: where.
        rank: k, directions; each is two evaluations.
        seed: of the directions.
    """

    def __init__(self, at: Linearization, *, rank: int, seed: int) -> None:
        rank = min(rank, at.unknowns)
        signs = normal_rows((PROBES, at.unknowns), (seed,), "probes")[0].sign().to(at.point)
        diagonal = torch.stack([sign * at.times(sign) for sign in signs]).mean(0)  # Hutchinson's estimate
        self.scale = at.mean_by_variable(diagonal).clamp(min=torch.finfo(diagonal.dtype).tiny)
        self._root = root = self.scale.sqrt()
        basis = torch.linalg.qr(normal_rows((at.unknowns, rank), (seed,), "directions")[0].to(at.point)).Q
        products = torch.stack([at.times(column / root) / root for column in basis.mT], 1)
        self.evaluations = 2 * (rank + PROBES)
        shift = torch.finfo(products.dtype).eps * products.norm()
        products = products + shift * basis
        core, failed = torch.linalg.cholesky_ex(basis.mT @ products)
        usable = not failed and bool(torch.isfinite(products).all())
        if usable:
            half = torch.linalg.solve_triangular(core, products.mT, upper=False)
            _, values, vectors = torch.linalg.svd(half, full_matrices=False)
            self._values, self._vectors = (values.square() - shift).clamp(min=0), vectors
        else:
            self._values, self._vectors = products.new_zeros(0), products.new_zeros(0, at.unknowns)
        self._singular = not usable

    def inverse(self, damping: float) -> tuple[Inverse, bool]:
        """See `Preconditioner`."""
        least = self._values[-1] if len(self._values) else self._root.new_zeros(())
        factor = (least + damping) / (self._values + damping) - 1

        def solve(right: Tensor) -> Tensor:
            inner = right / self._root
            found: Tensor = inner + (factor * (self._vectors @ inner)) @ self._vectors
            return found / self._root

        return solve, self._singular


def _scaled(scale: Tensor) -> Inverse:
    return lambda right: right / scale.clamp(min=torch.finfo(scale.dtype).tiny)


def full_bytes(unknowns: int, observations: int, buckets: float | None) -> int:
    """Peak memory of `Full` in float64: matrix, damped copy and factor, and the columns that are held."""
    width = observations if buckets is None else min(observations, int(buckets * unknowns))
    held = min(unknowns * width, max(HELD, unknowns))
    return 8 * (3 * unknowns**2 + held + 2 * min(CHANGES, AT_ONCE * observations))


def normal_matrix(at: Linearization, *, double: bool, buckets: float | None) -> tuple[Tensor, int]:
    """J^T J (n, n), from columns that are computed, and hashed, a few at a time; and how many columns that took."""
    size = max(1, min(AT_ONCE, CHANGES // at.observations))
    most = None if buckets is None else int(buckets * at.unknowns)
    columns = at.columns(next(_identity(at, size))[1])  # the first few, which show what can be compressed
    compress = Compression(at.simulated(), columns, rank=at.batch_size, buckets=most)
    matrix = next(iter(columns.values())).new_zeros(at.unknowns, at.unknowns, dtype=torch.float64 if double else None)
    passes = max(1, -(-compress.width * at.unknowns // HELD))
    width = max(1, -(-compress.width // passes))  # a likelihood that says nothing has no rows
    for first in range(0, compress.width, width):
        held = matrix.new_empty(at.unknowns, min(width, compress.width - first))
        for start, directions in _identity(at, size):
            part = compress(at.columns(directions) if start else columns)
            held[start : start + len(directions)] = part[:, first : first + width]
        _add_gram(matrix, held)
    if at.has_priors:
        for start, directions in _identity(at, AT_ONCE):
            matrix[start : start + len(directions)] += at.prior_times(directions).to(matrix)
    few = min(size, at.unknowns)
    return matrix, few + passes * (at.unknowns - few)


def _identity(at: Linearization, size: int) -> Iterator[tuple[int, Tensor]]:
    """The unit vectors, `size` at a time, after the number of the first."""
    for start in range(0, at.unknowns, size):
        directions = at.point.new_zeros(min(size, at.unknowns - start), at.unknowns)
        directions[:, start : start + len(directions)].fill_diagonal_(1)
        yield start, directions


def _add_gram(matrix: Tensor, columns: Tensor) -> None:
    """Add C C^T of C (n, w), each product once: half of the work of one matrix product."""
    for start in range(0, len(columns), BLOCK):
        stop = min(start + BLOCK, len(columns))
        block = columns[start:stop] @ columns[:stop].mT
        matrix[start:stop, :stop] += block
        matrix[:start, start:stop] += block[:, :start].mT
