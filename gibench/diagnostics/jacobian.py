"""The Jacobian of an update with respect to its private images, as products and, where it fits, as a matrix."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from gibench.errors import NonFiniteError, RefusalError, ShapeError
from gibench.types import Simulate

_AT_ONCE = 128
"""Directions that are differentiated at once, at most: more are not faster on a CPU."""
_HELD = 2**25
"""Numbers of updates that are held at once for that, a quarter of a GiB in double precision."""


class Jacobian:
    r"""J = d vec(g) / d vec(x) of one update, P x N with P entries of the update and N = B C H W pixels.

    Products with it are exact (forward and reverse mode), in the type of the images, which the victim must share.
    It says what an infinitesimal change of the private images does to what the server sees, at these images and
    weights: a local statement.

    Args:
        simulate: the client's local-update function: images (1, B, C, H, W), labels (1, B) -> per parameter
            (1, *shape).
        images: (B, C, H, W) in [0, 1], of the type of the victim's weights.
        labels: (B,), int64, or class probabilities (B, K).

    Raises:
        ShapeError: images are not (B, C, H, W).
        NonFiniteError: the update holds NaN or infinity.
        RefusalError: an operation of the victim has no forward derivative.
    """

    def __init__(self, simulate: Simulate, images: Tensor, labels: Tensor) -> None:
        if images.ndim != 4 or 0 in images.shape:
            raise ShapeError(
                f"images have shape {tuple(images.shape)}; pass one update's (B, C, H, W), none of them zero."
            )
        self.point = images.detach().flatten()
        self._function = _flat(simulate, images.shape, labels)
        found = vjp(self._function, self.point)
        self.update: Tensor = found[0].detach()
        self._pull: Callable[[Tensor], tuple[Tensor]] = found[1]
        if not torch.isfinite(self.update).all():
            raise NonFiniteError("the update holds NaN or infinity; repair the victim's weights.")
        self.chunk = max(1, min(_AT_ONCE, _HELD // self.rows))

    @property
    def rows(self) -> int:
        """P, the entries of the update."""
        return self.update.numel()

    @property
    def columns(self) -> int:
        """N, the pixels of all images."""
        return self.point.numel()

    def times(self, directions: Tensor) -> Tensor:
        """J v for each row v of `directions` (k, N); returns (k, P)."""
        return torch.cat([self._push(part) for part in directions.split(self.chunk)])

    def transposed_times(self, changes: Tensor) -> Tensor:
        """J^T u for each row u of `changes` (k, P); returns (k, N)."""
        return torch.cat([vmap(lambda u: self._pull(u)[0])(part) for part in changes.split(self.chunk)])

    def transposed(self) -> Tensor:
        """J^T as a matrix, (N, P): one forward-mode derivative per pixel."""
        matrix = self.update.new_empty(self.columns, self.rows)
        for start in range(0, self.columns, self.chunk):
            stop = min(start + self.chunk, self.columns)
            directions = self.point.new_zeros(stop - start, self.columns)
            directions[:, start:stop].fill_diagonal_(1)
            matrix[start:stop] = self._push(directions)
        return matrix

    def _push(self, directions: Tensor) -> Tensor:
        def along(direction: Tensor) -> Tensor:
            change: Tensor = jvp(self._function, (self.point,), (direction,))[1]
            return change

        try:
            with torch.no_grad():
                changes: Tensor = vmap(along)(directions)
        except NotImplementedError as error:
            raise RefusalError(
                f"the victim has an operation without a forward derivative ({str(error).splitlines()[0]}); replace it."
            ) from error
        return changes


def _flat(simulate: Simulate, shape: torch.Size, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """vec(x) (N,) -> vec(g) (P,), the parameters in the order of the victim."""

    def update(pixels: Tensor) -> Tensor:
        parts = simulate(pixels.view(1, *shape), labels[None])
        return torch.cat([part.flatten() for part in parts.values()])

    return update
