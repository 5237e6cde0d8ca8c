"""Controls: the same attack without the update, and with somebody else's (rules R5 and R6)."""

from copy import deepcopy

from gibench.attacks.base import Attack
from gibench.attacks.gradient_matching import GradientMatching
from gibench.errors import ConfigurationError
from gibench.likelihoods import Flat
from gibench.search import Adam
from gibench.search.generated import Generated
from gibench.types import Observation, Reconstruction


def prior_alone(attack: GradientMatching) -> GradientMatching:
    """Return the attack with a flat likelihood: what it answers when the update says nothing.

    What a generator draws has no mode to search for: there the answer is the random image that the search starts from.
    """
    drawn = isinstance(attack.pixels, Generated)
    if not attack.priors and not drawn:
        raise ConfigurationError("the attack has no prior, so that there is nothing to show alone.")
    return GradientMatching(
        likelihood=Flat(),
        priors=[] if drawn else [*attack.priors],
        search=Adam(steps=1) if drawn else attack.search,
        labels=attack.labels,
        pixels=attack.pixels,
        then=() if drawn else attack.stages[1:],
        restarts=attack.restarts,
        ball=attack.ball,
        engine=deepcopy(attack.engine),
    )


class WrongUpdate(Attack):
    """Attack the next client's update; scored against one's own images, what it still reaches is the prior's share."""

    def __init__(self, attack: Attack) -> None:
        super().__init__()
        self.attack = attack
        self.needs = attack.needs
        self.differentiates = attack.differentiates
        self.engine = attack.engine

    def forward(self, observation: Observation) -> Reconstruction:
        """See `Attack`."""
        if observation.updates < 2:
            raise ConfigurationError("the wrong-update control needs two updates or more; raise the number of updates.")
        found: Reconstruction = self.attack(observation.select([*range(1, observation.updates), 0]))
        return found
