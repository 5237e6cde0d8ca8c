"""The likelihood of an adaptive attacker: the density of the client's own defense (rule R15)."""

from torch import Tensor

from gibench.defenses.base import Defense
from gibench.errors import BackendError, ThreatModelError
from gibench.likelihoods import Gaussian, Hypothesis, Likelihood
from gibench.needs import Needs
from gibench.types import Observation, Update


class Density(Likelihood):
    """-log p(g | x) exactly as the client's defense defines it: half of the Bayes-optimal adversary.

    Args:
        assumed: the defense that the attacker takes for granted; None reads it off the observation.
        ignore_randomness: do without what the client drew, even where the threat model grants it, such as the mask of
            random pruning, which leaves the mixture over all masks.
        distance: what stands for a Dirac, where the defense has no noise or is not there; None is `Gaussian()`.

    Raises:
        ThreatModelError: on binding, when the client is known to have another defense than the assumed one.
    """

    def __init__(
        self,
        *,
        assumed: Defense | None = None,
        ignore_randomness: bool = False,
        distance: Likelihood | None = None,
    ) -> None:
        super().__init__()
        self.ignore_randomness = ignore_randomness
        self.assumed = assumed
        self.distance = distance or Gaussian()
        self.needs = (Needs() if assumed else Needs(defense=("none", "known"))).also(self.distance.needs)

    def hypothesis(self, observation: Observation) -> Hypothesis:
        """See `Likelihood`."""
        actual, distance = observation.defense, self.distance.as_distance(observation)
        if observation.threat_model.defense == "none" and self.assumed is None:
            return Hypothesis(distance, observation)
        if self.assumed is not None and (actual is not None or observation.threat_model.defense == "none"):
            same = isinstance(actual, type(self.assumed)) and actual.settings() == self.assumed.settings()
            if not same:
                raise ThreatModelError(
                    f"the attack is given the density of {self.assumed}, the client's defense is {actual or 'none'}; "
                    "give it that one, or leave `assumed` out."
                )
        defense = self.assumed or actual
        if not isinstance(defense, Defense):
            raise ThreatModelError("the defense is unknown; set threat_model.defense to 'known', or assume one.")
        if self.ignore_randomness:
            observation = observation.model_copy(update={"randomness": None})
        return defense.assume(observation, distance)

    def forward(self, simulated: Update, observed: Update) -> Tensor:
        """See `Likelihood`; there is none before it is bound to an observation."""
        raise BackendError("the density of a defense is bound to an observation first; use it in GradientMatching.")
