"""InstaHide (Huang et al., ICML 2020), as evaluated by Huang et al. (NeurIPS 2021): MixUp with random signs."""

import torch

from gibench.defenses.base import Defense, Private, Release
from gibench.defenses.mixing import MixedSimulation, assume_mixing, check_mixing, draw_mixing
from gibench.errors import RefusalError
from gibench.likelihoods import Hypothesis, Likelihood
from gibench.seeding import uniform_rows
from gibench.types import Observation
from gibench.victims import Victim


class InstaHide(Defense):
    """g = g(e, y) of encodings e_b = s_b * sum_j lambda_bj z_p(b, j), with s_b uniform in {-1, 1}^(C x H x W).

    z are the normalized images, as in the authors' code, so e is the network's input; as pixels it may leave [0, 1].
    Images and labels are mixed as in `MixUp`, all of them private ones of the same batch.

    p(g | x) is a Dirac where weights, partners (both (U, B, k)) and signs (U, B, C, H, W) are known, and where they are
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
        images, victim = private.images, private.victim
        drawn = draw_mixing(images, private.seeds, images=self.images, largest=self.largest)
        coins = uniform_rows(images.shape[1:], private.seeds, "signs") < 0.5
        drawn["signs"] = torch.where(coins, -1.0, 1.0).to(images)
        simulate = MixedSimulation(private.simulate, classes=victim.num_classes, flipped=victim)
        return Release(simulate(images, private.labels, **drawn), drawn)

    def assume(self, observation: Observation, distance: Likelihood) -> Hypothesis:
        """See `Defense`.

        Where nothing of the draw is known, what is matched and found are the encodings, whose labels are mixtures, too:
        known labels are not those of what is found, and an attack that searches labels fits better. Their pixels leave
        the range of images.
        """
        victim = observation.victim
        if not isinstance(victim, Victim):
            raise RefusalError("wrap the model in gibench.victims.Victim, which states its normalization.")
        return assume_mixing(observation, distance, flipped=victim)
