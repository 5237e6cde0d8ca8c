"""The prior: how plausible images are before any update is seen."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from gibench.types import Observation


class Prior(nn.Module, ABC):
    """-log p(x), up to a constant, for U batches at once."""

    @abstractmethod
    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        """Return (U,), lower is more plausible.

        Args:
            images: (U, B, C, H, W) in pixels, about [0, 1].
            observation: of the same U updates; a prior may read the public model and the batch statistics off it.
        """
