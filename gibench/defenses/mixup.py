"""MixUp as a defense (Zhang et al., ICLR 2018), as evaluated by Huang et al. (NeurIPS 2021)."""

from gibench.defenses.base import Defense, Private, Release
from gibench.defenses.mixing import MixedSimulation, assume_mixing, check_mixing, draw_mixing
from gibench.likelihoods import Hypothesis, Likelihood
from gibench.types import Observation


class MixUp(Defense):
    """g = g(e, y) of mixtures e_b = sum_j lambda_bj x_p(b, j) of k images of the batch, with labels mixed alike.

    Huang et al. mix within the whole private data set; here it is the batch alone, whose gradient is attacked. The
    weights are theirs: Dirichlet(3, 1, ..., 1), none above a bound; their lower bound is 0 here.

    p(g | x) is a Dirac where weights and partners are known (`weights` and `partners`, (U, B, k)), and where they are
    not a mixture over all of them that has no usable form.

    Args:
        images: k, how many images are mixed, all different, so B is at least k.
        largest: bound on each weight.
    """

    def __init__(self, *, images: int = 4, largest: float = 0.65) -> None:
        super().__init__()
        check_mixing(images, largest)
        self.images = images
        self.largest = largest

    def sample(self, private: Private) -> Release:
        """See `Defense`.

        Raises:
            ShapeError: the batch has fewer than k images.
        """
        drawn = draw_mixing(private.images, private.seeds, images=self.images, largest=self.largest)
        simulate = MixedSimulation(private.simulate, classes=private.victim.num_classes)
        return Release(simulate(private.images, private.labels, **drawn), drawn)

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`.

        Where weights and partners are not known, what is matched and found are the mixtures, whose labels are mixtures,
        too: known labels are not those of what is found, and an attack that searches labels fits better.
        """
        return assume_mixing(observation, distance)
