"""Sign compression: one bit for each entry (signSGD; Bernstein et al., ICML 2018)."""

from gibench.defenses.base import Defense, Private, Release
from gibench.likelihoods import Hypothesis, Likelihood, Sign
from gibench.types import Observation


class SignCompression(Defense):
    """g = sign(g(x)) of the update of the whole batch, sign(0) = 0: p(g | x) = prod_j 1[sign g_j(x) = g_j].

    Code that takes the signs of each sample's gradient and averages them sends something else.
    """

    def sample(self, private: Private) -> Release:
        """See `Defense`."""
        update = private.simulate(private.images, private.labels)
        return Release({name: value.sign() for name, value in update.items()}, {})

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`; the indicator in its logistic form."""
        return Hypothesis(Sign(), observation)
