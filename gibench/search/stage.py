"""A search of several variables, one after the other."""

from torch import nn

from gibench.search.base import Search
from gibench.search.representation import Representation


class Stage(nn.Module):
    """What is searched, and how; each row goes on from the best iterate of the stage before.

    Args:
        pixels: how images are written as numbers.
        search: the optimizer.
    """

    def __init__(self, *, pixels: Representation, search: Search) -> None:
        super().__init__()
        self.pixels = pixels
        self.search = search
