"""The prior: how plausible images are before any update is seen."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from gibench.errors import ConfigurationError, RefusalError
from gibench.needs import Needs
from gibench.types import Observation
from gibench.victims import Victim


class Prior(nn.Module, ABC):
    """-log p(x), up to a constant, for U batches at once."""

    needs = Needs()

    couples: bool = False
    """Whether a row's value depends on the other restarts of its update, which are then always searched together."""

    start: int = 0
    """Evaluations of a search before it says anything."""

    passes: int = 0
    """How often it runs the victim forward and back in each evaluation; for the memory budget."""

    @abstractmethod
    def forward(self, images: Tensor, observation: Observation) -> Tensor:
        """Return (U,), lower is more plausible.

        Args:
            images: (U, B, C, H, W) in pixels, about [0, 1].
            observation: of the same U updates, without the updates; a prior may read the public model and the batch
                statistics off it. Its labels are those that the attack takes for true, None where it searches them.
        """

    def residuals(self, images: Tensor, observation: Observation) -> Tensor:
        """Return rows r whose squares a least-squares search adds up, (U, M).

        With the weights that they hold constant, half their squared sum has the derivative of `forward`; see
        `gibench.likelihoods.Likelihood.residuals`.

        Args: as for `forward`.

        Raises:
            ConfigurationError: when the prior, or this setting of it, has no such form.
        """
        raise ConfigurationError(f"{type(self).__name__} has no least-squares form; search it by Adam or L-BFGS.")

    def check(self, observation: Observation) -> None:
        """Raise RefusalError, before anything is computed, when the prior cannot serve this victim."""

    def for_search(self) -> "Prior":
        """Return what one search evaluates: itself, or a copy of its own for a prior that remembers."""
        return self

    def advance(self, images: Tensor, observation: Observation) -> bool:
        """Look at what is evaluated next, where `couples`; say whether the prior is another one from now on.

        Args:
            images: as for `forward`, without a graph; rows of one update, its restarts, follow each other.
            observation: as for `forward`; rows of one update have the same seed.
        """
        return False


def standardized(images: Tensor, observation: Observation) -> Tensor:
    """Return images in the units of the victim's network, (x - mean) / std, in which published codes take norms."""
    if not isinstance(observation.victim, Victim):
        raise RefusalError("wrap the model in gibench.victims.Victim, which states its normalization and image shape.")
    return observation.victim.normalize(images)
