"""Named variables as one vector for each row, and back."""

import torch
from torch import Tensor

from gibench.search.evaluation import Variables


class Flat:
    """Variables name -> (R, *shape) as (R, n), in the order of their names, and back.

    Args:
        like: any variables of these names, shapes and types.
        dtype: of the vectors.
    """

    def __init__(self, like: Variables, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._pieces = {name: (value.shape[1:], value.dtype) for name, value in like.items()}

    @property
    def sizes(self) -> list[int]:
        """How many entries each variable has."""
        return [shape.numel() for shape, _ in self._pieces.values()]

    def flatten(self, variables: Variables) -> Tensor:
        """Return (R, n), in the type of the vectors."""
        return torch.cat([value.detach().flatten(1).to(self.dtype) for value in variables.values()], 1)

    def split(self, flat: Tensor) -> Variables:
        """Return name -> (R, *shape), in the type of the vectors."""
        pieces = zip(self._pieces.items(), flat.split(self.sizes, 1), strict=True)
        return {name: piece.reshape(-1, *shape) for (name, (shape, _)), piece in pieces}

    def unflatten(self, flat: Tensor) -> Variables:
        """Return name -> (R, *shape), each in its own type."""
        return {name: piece.to(self._pieces[name][1]) for name, piece in self.split(flat).items()}
