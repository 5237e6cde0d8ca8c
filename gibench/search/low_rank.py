"""Directions to which many sparse rows are orthogonal: the search of SPEAR (Dimitrov et al., NeurIPS 2024)."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SPARE = 6  # columns of a sketch beyond the rank that is asked for: they show a larger one
PROBE, PROBE_ZEROS = 96, 3  # a sampled vector is tried on so many rows, and on all where so many are zero
ROUGH = 30  # times the tolerance: what counts as zero before a direction is polished
POLISHED = 4  # times B: how many directions of a chunk of samples are polished; most samples repeat a direction
REDUNDANCY = 1e-3  # a zero row whose leverage is nearer to 1 is the only one that determines its dimension
CHUNK = 64  # samples for B = 1, doubled with each further image, as the share that finds a direction halves
LARGEST_CHUNK = 8192
REPEATS = 20  # after so many times the number of different samples, e^-20 of them are new


class Factors(NamedTuple):
    """A matrix (m, n) as left @ right. left: (m, k). right: (k, n), orthonormal rows. spectrum: (k,), descending."""

    left: Tensor
    right: Tensor
    spectrum: Tensor

    def rank(self, tolerance: float) -> int:
        """How many singular values exceed `tolerance` times the largest."""
        return int((self.spectrum > tolerance * self.spectrum[0]).sum())


def factor(matrix: Tensor, size: int, source: torch.Generator) -> Factors:
    """Factor a matrix (m, n) of which rank `size` or less is expected, by a random sketch with one power iteration.

    k = size + 6, or less where the matrix is smaller. Where its rank is at most k, the factors are exact; where it is
    larger, none of the k singular values is zero. Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4.
    """
    columns = min(size + SPARE, *matrix.shape)
    start = torch.randn(matrix.shape[1], columns, generator=source, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ start).Q
    basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ basis).Q).Q
    left, spectrum, right = torch.linalg.svd(basis.mT @ matrix, full_matrices=False)
    return Factors((basis @ left) * spectrum, right, spectrum)


def null_vectors(rows: Tensor, border: Tensor) -> Tensor:
    """Unit vectors (c, B) orthogonal to `rows` (c, B - 1, B); not finite where rows are dependent.

    They solve [rows; border] q = (0, ..., 0, 1) for any vector `border` (B,): one LU decomposition each, which for
    B <= 16 takes 0.1 to 1.5 microseconds a sample on one core, a third of a QR and a twentieth of an SVD.
    """
    square = torch.cat([rows, border.expand(len(rows), 1, -1)], 1)
    right = torch.zeros_like(square[:, :, :1])
    right[:, -1] = 1
    vectors = torch.linalg.solve_ex(square, right).result[..., 0]
    unit: Tensor = vectors / vectors.norm(dim=1, keepdim=True)
    return unit


def polish(vector: Tensor, rows: Tensor, tolerance: float) -> tuple[Tensor, int] | None:
    """Fit a direction (B,) to all the rows (m, B), of length one, that it annihilates; None where it is not a true one.

    Rows whose product with the vector is below the tolerance are its zeros; their last right singular vector is the
    next vector. For generic deltas a direction belongs to an image if and only if its zeros have rank B - 1 and keep it
    when any one of them is left out, which their leverages tell. By the luck of the sample, a vector is also orthogonal
    to the rows at which two images are off and to one further row; that row's leverage is 1.

    Returns:
        The direction and the number of its zeros.
    """
    leverage = zeros = rows[:0]
    for scale in (ROUGH, 1, 1):
        zeros = rows[(rows @ vector).abs() < scale * tolerance]
        if len(zeros) <= len(vector):
            return None
        left, values, right = torch.linalg.svd(zeros, full_matrices=False)
        if values[-2] < ROUGH * tolerance:
            return None
        vector, leverage = right[-1], left[:, :-1].square().sum(1)
    return None if leverage.max() > 1 - REDUNDANCY else (vector, len(zeros))


def samples(rows: Tensor, source: torch.Generator, *, tolerance: float, budget: int) -> Iterator[Tensor]:
    """Yield, chunk by chunk until `budget` vectors are drawn, those with many zeros among `rows` (m, B), best first.

    Each vector is orthogonal to B - 1 rows drawn with replacement. Where few rows make few samples, each is drawn about
    `REPEATS` times and no more.
    """
    size, drawn = rows.shape[1], 0
    budget = min(budget, REPEATS * len(rows) ** (size - 1))
    probe = rows[torch.randperm(len(rows), generator=source)[:PROBE]]
    while drawn < budget:
        count = min(budget - drawn, CHUNK << size, LARGEST_CHUNK)
        drawn += count
        chosen = torch.randint(len(rows), (count, size - 1), generator=source)
        vectors = null_vectors(rows[chosen], torch.randn(size, generator=source, dtype=rows.dtype))
        vectors = vectors[((vectors @ probe.mT).abs() < ROUGH * tolerance).sum(1) >= PROBE_ZEROS]
        zeros = ((vectors @ rows.mT).abs() < ROUGH * tolerance).sum(1)
        yield vectors[zeros.argsort(descending=True, stable=True)]


def directions(
    rows: Tensor,
    source: torch.Generator,
    accept: Callable[[Tensor], Tensor | None],
    *,
    tolerance: float,
    budget: int,
) -> Tensor | None:
    """Sample directions until B independent ones, sparsest first, are accepted.

    Args:
        rows: (m, B), of length one: the rows of the left factor.
        source: of the random numbers.
        accept: is asked of (B, B), one direction a row, whenever there are new ones; what it returns is the answer.
        tolerance: below which a product of unit vectors is zero.
        budget: how many vectors are sampled at most.

    Returns:
        What was accepted, or None.
    """
    size = rows.shape[1]
    if size == 1:
        return accept(rows.new_ones(1, 1))
    found: list[tuple[Tensor, int]] = []
    for vectors in samples(rows, source, tolerance=tolerance, budget=budget):
        known = len(found)
        for vector, _ in found:
            vectors = _without(vectors, vector, tolerance)
        for _ in range(POLISHED * size):
            if not len(vectors):
                break
            polished = polish(vectors[0], rows, tolerance)
            vectors = _without(vectors, vectors[0], tolerance)
            if polished is not None and all(len(_without(polished[0][None], old, tolerance)) for old, _ in found):
                found.append(polished)
                vectors = _without(vectors, polished[0], tolerance)
        if len(found) > known and len(chosen := _independent(found, tolerance)) == size:
            answer = accept(torch.stack(chosen))
            if answer is not None:
                return answer
    return None


def _without(vectors: Tensor, vector: Tensor, tolerance: float) -> Tensor:
    """The unit vectors (c, B) but those that are plus or minus `vector`."""
    near = torch.minimum((vectors - vector).norm(dim=1), (vectors + vector).norm(dim=1)) < ROUGH * tolerance
    return vectors[~near]


def _independent(found: list[tuple[Tensor, int]], tolerance: float) -> list[Tensor]:
    """The directions with the most zeros, each independent of those before it."""
    chosen: list[Tensor] = []
    basis: list[Tensor] = []
    for vector, _ in sorted(found, key=lambda pair: -pair[1]):
        rest = vector
        for _ in range(2):  # once more: a single pass leaves rounding errors behind
            for other in basis:
                rest = rest - (rest @ other) * other
        if rest.norm() > ROUGH * tolerance:
            chosen.append(vector)
            basis.append(rest / rest.norm())
    return chosen
