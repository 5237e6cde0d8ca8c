"""The curvature history of L-BFGS, one for each row, in compact form."""

import torch
from torch import Tensor

MINIMUM_CURVATURE = 1e-10  # PyTorch's bound below which a pair is skipped


class History:
    """Up to m pairs s (steps) and y (changes of the derivative) for each of R rows, and the inverse Hessian they imply.

    The two-loop recursion, written as triangular systems (Byrd, Nocedal, Schnabel 1994), so that it costs a few
    passes over the history instead of 4 m small operations: with R_ij = s_i . y_j for i not newer than j, D its
    diagonal and gamma = s . y / y . y of the newest pair,

        R a = S g,    q = g - Y^T a,    R^T c = D a - gamma Y q,    H g = gamma q + S^T c.

    Args:
        like: (R, n); gives shape, type and device.
        size: m.
    """

    def __init__(self, like: Tensor, size: int) -> None:
        rows, width = like.shape
        self.size = size
        self.steps = like.new_zeros(rows, size, width)
        self.changes = like.new_zeros(rows, size, width)
        self.step_change = like.new_zeros(rows, size, size)  # s_i . y_j
        self.change_change = like.new_zeros(rows, size, size)  # y_i . y_j
        self.scale = like.new_ones(rows)  # gamma
        self.count = torch.zeros(rows, dtype=torch.int64, device=like.device)
        self.next = torch.zeros_like(self.count)

    def add(self, step: Tensor, change: Tensor, rows: Tensor) -> None:
        """Store a pair (R, n) for those of `rows` (R,), bool, whose curvature s . y is positive enough."""
        curvature = (step * change).sum(1)
        index = torch.nonzero(rows & (curvature > MINIMUM_CURVATURE)).flatten()
        if not len(index):
            return
        slot = self.next[index]
        self.steps[index, slot] = step[index]
        self.changes[index, slot] = change[index]
        self.scale[index] = curvature[index] / change[index].square().sum(1)
        self.next[index] = (slot + 1) % self.size
        self.count[index] = (self.count[index] + 1).clamp(max=self.size)
        used = int(self.count.max())
        # Products for all rows and then a choice: choosing first would copy the whole history.
        steps_change = _dots(self.steps[:, :used], change)[index]
        changes_step = _dots(self.changes[:, :used], step)[index]
        changes_change = _dots(self.changes[:, :used], change)[index]
        self.step_change[index, :used, slot] = steps_change
        self.step_change[index, slot, :used] = changes_step
        self.change_change[index, :used, slot] = changes_change
        self.change_change[index, slot, :used] = changes_change

    def apply(self, gradient: Tensor) -> Tensor:
        """Multiply (R, n) by each row's inverse Hessian."""
        used = int(self.count.max())
        if not used:
            return gradient
        steps, changes = self.steps[:, :used], self.changes[:, :used]
        upper, gram, order = self._ordered(used)
        by_step = _dots(steps, gradient).gather(1, order)[..., None]
        by_change = _dots(changes, gradient).gather(1, order)[..., None]
        gamma = self.scale[:, None, None]
        a = torch.linalg.solve_triangular(upper, by_step, upper=True)
        right = upper.diagonal(dim1=1, dim2=2)[..., None] * a - gamma * (by_change - gram @ a)
        c = torch.linalg.solve_triangular(upper.mT, right, upper=False)
        back = torch.argsort(order, 1)[..., None]
        a, c = a.gather(1, back), c.gather(1, back)
        product: Tensor = gamma[..., 0] * (gradient - (a.mT @ changes).squeeze(1)) + (c.mT @ steps).squeeze(1)
        return product

    def keep(self, rows: Tensor) -> None:
        """Go on with `rows` (r,), ascending indexes, alone. In place: a copy would need as much memory again."""
        for row, source in enumerate(rows.tolist()):
            if row != source:
                self.steps[row] = self.steps[source]
                self.changes[row] = self.changes[source]
        self.steps, self.changes = self.steps[: len(rows)], self.changes[: len(rows)]
        self.step_change, self.change_change = self.step_change[rows], self.change_change[rows]
        self.scale, self.count, self.next = self.scale[rows], self.count[rows], self.next[rows]

    def _ordered(self, used: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the triangle R and the Gram matrix of y, oldest pair first, and that order (R, used).

        Slots that a row has not filled come last; a one on their diagonal keeps the system regular, and their zero
        right-hand side keeps them out of it.
        """
        place = torch.arange(used, device=self.next.device)
        oldest = (self.next - self.count) % self.size
        order = torch.where(place < self.count[:, None], (oldest[:, None] + place) % self.size, place)
        upper, gram = (
            matrix[:, :used, :used]
            .gather(1, order[..., None].expand(-1, -1, used))
            .gather(2, order[:, None].expand(-1, used, -1))
            for matrix in (self.step_change, self.change_change)
        )
        empty = place >= self.count[:, None]
        return torch.triu(upper) + torch.diag_embed(empty.to(upper.dtype)), gram, order


def _dots(vectors: Tensor, vector: Tensor) -> Tensor:
    """Inner products of (R, m, n) with (R, n): (R, m). In this order of factors a CPU is ten times as fast."""
    return (vector[:, None] @ vectors.mT).squeeze(1)
