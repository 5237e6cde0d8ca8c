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
        self.added: tuple[Tensor, Tensor, Tensor] | None = None  # change, rows and slots whose products are missing

    def add(self, step: Tensor, change: Tensor, rows: Tensor) -> None:
        """Store a pair (R, n) for those of `rows` (R,), bool, whose curvature s . y is positive enough."""
        self._settle()
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
        self.added = change, index, slot

    def apply(self, gradient: Tensor) -> Tensor:
        """Multiply (R, n) by each row's inverse Hessian."""
        used = int(self.count.max())
        if not used:
            return gradient
        by_step, by_change = self._multiply(gradient)
        steps, changes = self.steps[:, :used], self.changes[:, :used]
        upper, gram, order = self._ordered(used)
        by_step, by_change = by_step.gather(1, order)[..., None], by_change.gather(1, order)[..., None]
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
        self._settle()
        for row, source in enumerate(rows.tolist()):
            if row != source:
                self.steps[row] = self.steps[source]
                self.changes[row] = self.changes[source]
        self.steps, self.changes = self.steps[: len(rows)], self.changes[: len(rows)]
        self.step_change, self.change_change = self.step_change[rows], self.change_change[rows]
        self.scale, self.count, self.next = self.scale[rows], self.count[rows], self.next[rows]

    def _multiply(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Return S g and Y g, (R, used); on the same pass over the history, enter the products of the last added pair.

        Of a new pair, y with every s and y is needed, but s with older y is not: it lies below R's diagonal.
        """
        used = int(self.count.max())
        vectors = gradient[..., None] if self.added is None else torch.stack([gradient, self.added[0]], 2)
        by_step, by_change = self.steps[:, :used] @ vectors, self.changes[:, :used] @ vectors
        if self.added is not None:
            _, index, slot = self.added
            self.step_change[index, :used, slot] = by_step[index, :, 1]
            self.change_change[index, :used, slot] = by_change[index, :, 1]
            self.change_change[index, slot, :used] = by_change[index, :, 1]
            self.added = None
        return by_step[..., 0], by_change[..., 0]

    def _settle(self) -> None:
        """Enter the products of the last added pair now, where no gradient came by."""
        if self.added is not None:
            self._multiply(self.added[0])

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
