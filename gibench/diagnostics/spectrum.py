"""The singular values of an update's Jacobian: all of them, or what random probes say of them.

Everything that is asked of them is a sum over directions, sum_i f(s_i), which both kinds answer as an `Amount`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from gibench.diagnostics.jacobian import Jacobian
from gibench.engine.memory import free_bytes
from gibench.errors import ConfigurationError
from gibench.seeding import generator
from gibench.types import Simulate

Method = Literal["auto", "exact", "estimated"]
MOST_MEMORY = 8 * 2**30
"""Bytes that an exact spectrum may take, where so much is free."""
MOST_WORK = 4e12
"""Floating-point operations that an exact spectrum may take on a CPU: some five minutes on two cores."""
PROBES, STEPS = 4, 40


class Amount(NamedTuple):
    """A number and its standard error; 0 where it is exact."""

    value: float
    error: float = 0.0


class AnySpectrum(Protocol):
    """What the bounds read: an exact `Spectrum` or an `EstimatedSpectrum`."""

    @property
    def unknowns(self) -> int:
        """N, the pixels of all images."""

    @property
    def observations(self) -> int:
        """P, the entries of the update."""

    def total(self, function: Callable[[Tensor], Tensor]) -> Amount:
        """Sum `function` of the singular values over the N directions."""


class Spectrum(NamedTuple):
    """All singular values of J, (N,), descending; of a J with P < N rows the last N - P are zero.

    observations: P. tolerance: relative to the largest; what lies below is a rounding error of zero.
    """

    values: Tensor
    observations: int
    tolerance: float

    @property
    def unknowns(self) -> int:
        """N, the pixels of all images."""
        return len(self.values)

    @property
    def rank(self) -> int:
        """How many directions of the images move the update at all."""
        return int((self.values > self.tolerance * self.values[0]).sum())

    @property
    def null_directions(self) -> int:
        """How many directions leave no trace, to first order."""
        return self.unknowns - self.rank

    @property
    def condition(self) -> float:
        """Largest over smallest singular value that is not zero; infinite where all are."""
        return float(self.values[0] / self.values[self.rank - 1]) if self.rank else float("inf")

    @property
    def gap(self) -> float | None:
        """Smallest that counts over largest that does not: a rank can be trusted where this is large.

        None where nothing is counted as zero, or what is is zero exactly.
        """
        if self.rank in (0, self.unknowns) or self.values[self.rank] == 0:
            return None
        return float(self.values[self.rank - 1] / self.values[self.rank])

    def total(self, function: Callable[[Tensor], Tensor]) -> Amount:
        """Sum over directions; those without a trace enter as zero, not as their rounding errors."""
        values = self.values.clone()
        values[self.rank :] = 0
        return Amount(float(function(values).sum()))


class EstimatedSpectrum(NamedTuple):
    """What `probes` random directions see of J, by stochastic Lanczos quadrature (Ubaru, Chen and Saad, 2017).

    nodes, weights: (probes, steps), Ritz values and how many of the N directions each stands for. largest is a lower
    bound of the largest singular value, as a rule to many digits; smallest an upper bound of the smallest one, as a
    rule far above it. How many directions leave no trace at all cannot be told from them.
    """

    nodes: Tensor
    weights: Tensor
    unknowns: int
    observations: int

    @property
    def largest(self) -> float:
        """The largest Ritz value."""
        return float(self.nodes.max())

    @property
    def smallest(self) -> float:
        """The smallest Ritz value, of all probes."""
        return float(self.nodes.min())

    def total(self, function: Callable[[Tensor], Tensor]) -> Amount:
        """Sum over directions: the mean over probes, and its standard error."""
        found = (self.weights * function(self.nodes)).sum(1)
        return Amount(float(found.mean()), float(found.std() / len(found) ** 0.5))


def jacobian_spectrum(
    simulate: Simulate,
    images: Tensor,
    labels: Tensor,
    *,
    method: Method = "auto",
    tolerance: float | None = None,
    probes: int = PROBES,
    steps: int = STEPS,
) -> Spectrum | EstimatedSpectrum:
    """Return the singular values of d vec(g) / d vec(x) at one update's images.

    Args:
        simulate: the client's local-update function; see `Jacobian`.
        images: (B, C, H, W), as a rule float64: float32 hides what lies below 1e-6 of the largest.
        labels: (B,), or class probabilities (B, K).
        method: "exact", "estimated", or "auto": exact where memory (`MOST_MEMORY`) and work (`MOST_WORK`) allow it.
        tolerance: see `exact_spectrum`.
        probes: see `estimated_spectrum`.
        steps: see `estimated_spectrum`.

    Raises:
        ConfigurationError: "exact" needs more memory than there is.
        ShapeError, NonFiniteError, RefusalError: see `Jacobian`.
    """
    jacobian = Jacobian(simulate, images, labels)
    return spectrum_of(jacobian, method=method, tolerance=tolerance, probes=probes, steps=steps)


def spectrum_of(
    jacobian: Jacobian,
    *,
    method: Method = "auto",
    tolerance: float | None = None,
    probes: int = PROBES,
    steps: int = STEPS,
) -> Spectrum | EstimatedSpectrum:
    """Return the singular values of a Jacobian that is there; arguments and errors as in `jacobian_spectrum`."""
    free = min(free_bytes(jacobian.point.device) / 2, MOST_MEMORY)
    if method == "exact" and exact_bytes(jacobian) > free:
        raise ConfigurationError(
            f"the exact spectrum of {jacobian.rows:,} x {jacobian.columns:,} takes {exact_bytes(jacobian) / 2**30:.1f} "
            f"GiB and may take {free / 2**30:.1f}; choose method 'estimated', or fewer images."
        )
    if method == "exact" or (method == "auto" and exact_bytes(jacobian) <= free and _work(jacobian) <= MOST_WORK):
        return exact_spectrum(jacobian, tolerance=tolerance)
    return estimated_spectrum(jacobian, probes=probes, steps=steps)


def exact_bytes(jacobian: Jacobian) -> int:
    """Peak memory of `exact_spectrum`: J twice, and three matrices of its smaller side."""
    large, small = sorted((jacobian.rows, jacobian.columns), reverse=True)
    return jacobian.point.element_size() * (2 * large * small + 3 * small**2)


def _work(jacobian: Jacobian) -> float:
    """Operations of QR and SVD; those of a singular value decomposition wait for memory and count fourfold."""
    large, small = sorted((jacobian.rows, jacobian.columns), reverse=True)
    return 2 * (large - small / 3) * small**2 + 4 * 8 / 3 * small**3


def exact_spectrum(jacobian: Jacobian, *, tolerance: float | None = None) -> Spectrum:
    """Return all singular values, by QR of J and the singular values of its triangle.

    J^T J, the shorter way, would lose half of the digits: in double precision it cannot tell a direction that leaves a
    trace of 1e-8 from one that leaves none.

    Args:
        jacobian: P x N.
        tolerance: relative to the largest singular value; None is max(P, N) machine epsilons, what rounding leaves of a
            zero at most, as in numpy's matrix_rank (3.5e-12 for LeNet).
    """
    with torch.no_grad():
        transposed = jacobian.transposed()
        if jacobian.rows > jacobian.columns:
            transposed = torch.linalg.qr(transposed.mT, mode="r").R
        elif jacobian.rows < jacobian.columns:
            transposed = torch.linalg.qr(transposed, mode="r").R
        found = torch.linalg.svdvals(transposed)
    if tolerance is None:
        tolerance = max(jacobian.rows, jacobian.columns) * torch.finfo(found.dtype).eps
    values = found.new_zeros(jacobian.columns)
    values[: len(found)] = found
    return Spectrum(values, jacobian.rows, tolerance)


def estimated_spectrum(
    jacobian: Jacobian, *, probes: int = PROBES, steps: int = STEPS, seed: int = 0
) -> EstimatedSpectrum:
    """Return what random probes see of J, by products alone: `probes` * `steps` with J, and as many with its transpose.

    Golub-Kahan bidiagonalization from random signs, with the right vectors orthogonalized anew (one side suffices:
    Simon and Zha, 2000); it works on J itself, because J^T J would lose half of the digits. Memory: `probes` * `steps`
    images. scipy's svds would find single ends of the spectrum, with one vector at a time.

    Args:
        jacobian: P x N.
        probes: random directions; the error falls as 1 / sqrt(probes), and as 1 / sqrt(N).
        steps: of the bidiagonalization; more resolve more of the small end. At most N.
        seed: of the signs.
    """
    if probes < 2 or steps < 1:
        raise ConfigurationError(f"probes is {probes}, steps {steps}; an estimate with an error takes 2 and 1 or more.")
    steps = min(steps, jacobian.columns)
    signs = 2 * torch.randint(2, (probes, jacobian.columns), generator=generator("probes of a Jacobian", seed)) - 1
    right = signs.to(jacobian.point) / jacobian.columns**0.5
    diagonal, upper = (right.new_zeros(probes, steps) for _ in range(2))
    basis: list[Tensor] = []
    left = right.new_zeros(probes, jacobian.rows)
    with torch.no_grad():
        for step in range(steps):
            basis.append(right)
            left, diagonal[:, step] = _normalize(jacobian.times(right) - upper[:, step - 1, None] * left)
            right = jacobian.transposed_times(left) - diagonal[:, step, None] * right
            for _ in range(2):  # twice is enough (Kahan)
                for vector in basis:
                    right = right - (right * vector).sum(1, keepdim=True) * vector
            right, upper[:, step] = _normalize(right)
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(upper[:, :-1], offset=1)
    _, nodes, vectors = torch.linalg.svd(matrix)
    return EstimatedSpectrum(nodes, jacobian.columns * vectors[:, :, 0] ** 2, jacobian.columns, jacobian.rows)


def _normalize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of length 1, and their lengths; a row of zeros, where nothing is left, stays."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    return rows / lengths.clamp(min=torch.finfo(rows.dtype).tiny)[:, None], lengths
