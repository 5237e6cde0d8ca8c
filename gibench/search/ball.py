"""The delta-ball of the Bayes-optimal adversary: an answer is judged by its neighborhood."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gibench.errors import ConfigurationError
from gibench.seeding import derive, normal_rows, uniform_rows


class Ball:
    """Points drawn uniformly from the ball of radius delta about a batch, for the Monte-Carlo surrogate.

        mean over i = 1..k of -log p(g | x + d_i) - log p(x + d_i),   d_i uniform in |d| <= delta,

    of the adversary that maximizes the posterior mass of the ball (Balunović et al., ICLR 2022, section 4). The radius
    of a point is delta u^(1/N) with u ~ U(0, 1) and its direction is uniform, N the numbers of the batch. The public
    code judges the center alone, which is `radius` 0; a helper there that is not used draws the radius as delta u,
    which is not uniform. For a Gaussian likelihood and small delta the ball adds delta^2 / (N + 2) |J|^2 / (2 sigma^2)
    with the Jacobian J of the update, on the average.

    Args:
        radius: delta, in pixels in [0, 1], of the whole batch; 0 is the center.
        samples: k, points for each evaluation, drawn anew each time; they cost k gradient evaluations.
    """

    def __init__(self, *, radius: float = 0.0, samples: int = 1) -> None:
        if not radius >= 0 or samples < 1:
            raise ConfigurationError(
                f"radius is {radius} and samples {samples}; choose a radius >= 0 and samples >= 1."
            )
        self.radius = radius
        self.samples = samples

    def draw(self, shape: Sequence[int], seeds: Sequence[int], evaluations: Sequence[int]) -> Tensor:
        """Return (R, samples, *shape), row r from `seeds[r]` and the number of its evaluation."""
        own = [derive(seed, "ball", count) for seed, count in zip(seeds, evaluations, strict=True)]
        directions = normal_rows((self.samples, *shape), own, "direction")
        lengths = directions.flatten(2).norm(dim=2)
        size = torch.Size(shape).numel()
        radii = self.radius * uniform_rows((self.samples,), own, "radius") ** (1 / size)
        moves: Tensor = directions * (radii / lengths).reshape(*radii.shape, *[1] * len(shape))
        return moves
