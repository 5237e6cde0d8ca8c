"""SPEAR: exact recovery of whole batches by low rank and ReLU sparsity (Dimitrov et al., NeurIPS 2024)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gibench.attacks.analytic import first_layer
from gibench.attacks.base import Attack
from gibench.attacks.posterior import white_box
from gibench.errors import ConfigurationError, RefusalError
from gibench.needs import Needs
from gibench.search.low_rank import Factors, directions, factor
from gibench.seeding import generator
from gibench.types import Observation, Reconstruction
from gibench.victims import Victim

BOX_MARGIN = 0.01  # pixels that leave [0, 1] by more are no image's: far above rounding, far below a wrong mixture's


class SPEAR(Attack):
    r"""Read all images of a batch off the gradient of a first layer that is fully connected and followed by a ReLU.

    With inputs X (B, n), z = X W^T + b and deltas D = dl/dz (m, B), the gradient with respect to [W | b] is

    .. math:: G = D \, [X \,|\, 1] = L R, \qquad L = D M \in \mathbb{R}^{m \times B}, \; M \in \mathbb{R}^{B \times B},

    whose rank B the singular values show. The column q_b of the inverse of M has L q_b = D_b, which is zero at each
    neuron whose ReLU is off for image b, about half of them. So a vector orthogonal to B - 1 rows of L, drawn at
    random, is q_b up to its scale where image b is off in all of them; it shows as orthogonal to many further rows.
    From B independent directions, [X | 1] follows up to the scale of its rows, which the ones fix.

    An answer is accepted only with its certificate: at `agreement` of all neurons and for each image, the recovered
    image makes the neuron positive where the recovered delta is not zero, and not positive where it is; and its pixels
    lie in [0, 1]. An update that gets none in `max_samples` samples, or whose rank is not the batch size (noise, equal
    images, a dead network), is refused: its images are NaN, its objective infinite; other updates go on. No labels and
    no simulation are needed. Where the batch size is hidden, the ranks tell it: the reconstruction has as many
    images as the largest batch that is found, and rows of smaller ones end with NaN. All is computed on the CPU in
    float64, whatever the type of the update. The objective is |G - D [X | 1]| / |G|.

    Differences from the paper and its code: the bias stands in the factored matrix as one more column, so that images
    need only be affinely independent and the scales need no further equations; directions are fitted to all rows that
    they annihilate before they are judged; those of no image are told by leverage (`gibench.search.low_rank.polish`)
    and not by the greedy search for the choice of best sparsity; and the certificate is a condition, not a score.

    Args:
        max_samples: how many vectors are drawn for one update at most. Where half of the neurons are off
            for an image, one sample in 2^(B - 1) finds it. B = 8 takes 10^4 samples, B = 16 takes 2 * 10^5 to 5 * 10^5;
            the default bounds the time for one update at 10 to 30 s.
        tolerance: below which singular values, relative to the largest, and products of unit vectors are zero. None is
            eps^(3/4) of the update's type (2e-12 in float64, 6e-6 in float32): well above its rounding, and below
            what true nonzeros are but for a few rows.
        agreement: of the certificate, in (0, 1]. Right answers reach 0.998 in float32 and 1 in float64, wrong ones
            stay below 0.8; the default leaves room for deltas that are smaller than the tolerance.
        largest_batch: the largest rank that is looked for where the batch size is hidden; more is noise.

    Raises:
        ConfigurationError: for settings out of range.
    """

    needs = Needs(update=("gradient",))

    def __init__(
        self,
        *,
        max_samples: int = 2_000_000,
        tolerance: float | None = None,
        agreement: float = 0.99,
        largest_batch: int = 32,
    ) -> None:
        super().__init__()
        if max_samples < 1 or largest_batch < 1:
            raise ConfigurationError(f"max_samples is {max_samples}, largest_batch {largest_batch}; set at least 1.")
        if tolerance is not None and not 0 < tolerance < 1e-2:
            raise ConfigurationError(f"tolerance is {tolerance}; set it between 0 and 0.01, or None.")
        if not 0.9 <= agreement <= 1:
            raise ConfigurationError(f"agreement is {agreement}; below 0.9 it certifies nothing, above 1 all fail.")
        self.max_samples = max_samples
        self.tolerance = tolerance
        self.agreement = agreement
        self.largest_batch = largest_batch

    def forward(self, observation: Observation) -> Reconstruction:
        """See `Attack`. Raises RefusalError where the first layer does not fit, or is too small for the batch."""
        self.check(observation.threat_model)
        name, layer = first_layer(observation, "SPEAR")
        _check_relu(observation.victim, name)
        known = observation.batch_size
        if known is not None and known > min(layer.weight.shape):
            rows, pixels = layer.weight.shape
            raise RefusalError(
                f"SPEAR needs no more images than the first layer has rows ({rows}) or pixels ({pixels}); here {known}."
            )
        updates = observation.update[f"{name}.weight"], observation.update[f"{name}.bias"]
        problems = [
            self._problem(torch.column_stack(parts).cpu(), known, seed)
            for *parts, seed in zip(*updates, observation.seeds, strict=True)
        ]
        if not any(problem.size for problem in problems) and known is None:
            raise RefusalError(
                f"SPEAR finds no batch of at most {self.largest_batch} images in the rank of any update; "
                "grant threat_model.batch_size, or remove what fills the rank."
            )
        return self._reconstruct(observation, problems, layer)

    def _problem(self, gradient: Tensor, known: int | None, seed: int) -> "_Problem":
        """Factor one update's gradient (m, n + 1) of weight and bias."""
        tolerance = self.tolerance or torch.finfo(gradient.dtype).eps ** 0.75
        source = generator(seed, "spear")
        matrix = gradient.double()
        factors = factor(matrix, known or self.largest_batch, source)
        rank = factors.rank(tolerance)
        told = rank <= self.largest_batch and rank < min(matrix.shape)  # a full rank tells nothing
        size = rank if rank == known or (known is None and told) else 0
        left, right, spectrum = factors
        return _Problem(
            factors=Factors(left[:, :size] * matrix.any(1)[:, None], right[:size], spectrum),
            residual=(matrix - left[:, :size] @ right[:size]).norm() / matrix.norm(),
            size=size,
            rank=rank,
            tolerance=tolerance,
            source=source,
        )

    def _reconstruct(self, observation: Observation, problems: "list[_Problem]", layer: nn.Linear) -> Reconstruction:
        victim = white_box(observation)
        first = next(iter(observation.update.values()))
        found = [self._solve(problem, victim, layer) if problem.size else None for problem in problems]
        size = observation.batch_size or max((len(each) for each in found if each is not None), default=1)
        images = torch.full((len(problems), size, *observation.image_shape), torch.nan).to(first)
        objective = torch.full((len(problems),), torch.inf).to(first)
        for update, (problem, answer) in enumerate(zip(problems, found, strict=True)):
            if answer is not None:
                images[update, : problem.size] = answer.to(first)
                objective[update] = problem.residual
        return Reconstruction(
            images=images.clamp(0, 1),
            labels=None,
            objective=objective,
            gradient_evaluations=torch.zeros(observation.updates, dtype=torch.int64),
            refused=tuple(
                self._reason(problem, observation.batch_size) if answer is None else None
                for problem, answer in zip(problems, found, strict=True)
            ),
        )

    def _reason(self, problem: "_Problem", known: int | None) -> str:
        if not problem.size:
            wanted = f"that of {known} images" if known else "that of a batch"
            return f"the first layer's gradient shows rank {problem.rank}, not {wanted}."
        return f"no answer has the certificate within max_samples = {self.max_samples:,} samples."

    def _solve(self, problem: "_Problem", victim: Victim, layer: nn.Linear) -> Tensor | None:
        """The images (B, C, H, W) of one update, or None where no answer gets the certificate."""
        left = problem.factors.left
        lengths = left.norm(dim=1, keepdim=True)
        live = lengths[:, 0] > 0  # where all images are off, the gradient is exactly zero, and so is `left`
        weight, bias = layer.weight.detach().cpu().double(), layer.bias.detach().cpu().double()
        mean, std = victim.mean.cpu().double(), victim.std.cpu().double()

        def accept(found: Tensor) -> Tensor | None:
            inputs = unmix(found, problem.factors.right)
            images = inputs.unflatten(1, victim.image_shape) * std + mean
            if not (images.isfinite().all() and images.min() > -BOX_MARGIN and images.max() < 1 + BOX_MARGIN):
                return None
            active = (left @ found.mT).abs() > problem.tolerance * lengths
            return images if agreement(inputs, active, weight, bias) >= self.agreement else None

        rows = (left / lengths)[live]
        return directions(rows, problem.source, accept, tolerance=problem.tolerance, budget=self.max_samples)


class _Problem(NamedTuple):
    """One update. size: of its batch, 0 where the rank does not fit. residual: |G - L R| / |G|. rank: as seen."""

    factors: Factors
    residual: Tensor
    size: int
    rank: int
    tolerance: float
    source: torch.Generator


def unmix(found: Tensor, right: Tensor) -> Tensor:
    """The inputs X (B, n) from directions (B, B), one a row, of any scale, and the right factor (B, n + 1).

    The inverse of the matrix with the directions as columns, times the right factor, is [X | 1] up to the scale of its
    rows.
    """
    mixed, failed = torch.linalg.solve_ex(found.mT, right)
    return mixed[:, :-1] / mixed[:, -1:] if not failed else torch.full_like(mixed[:, :-1], torch.nan)


def agreement(inputs: Tensor, active: Tensor, weight: Tensor, bias: Tensor) -> float:
    """The certificate: the share of neurons that are positive exactly where the delta is not zero; of the worst input.

    Args:
        inputs: (B, n), what the layer sees.
        active: (m, B), where the deltas are not zero.
        weight: (m, n), of the layer.
        bias: (m,), of the layer.
    """
    positive = inputs @ weight.mT + bias > 0
    return (positive == active.mT).double().mean(1).min().item()


def _check_relu(victim: nn.Module, name: str) -> None:
    """Raise RefusalError unless the module after the layer `name` is a ReLU."""
    leaves = [(path, module) for path, module in victim.named_modules() if not list(module.children())]
    after = [path for path, _ in leaves].index(name) + 1
    follower = leaves[after][1] if after < len(leaves) else None
    if not isinstance(follower, nn.ReLU):
        kind = "nothing" if follower is None else type(follower).__name__
        raise RefusalError(f"SPEAR needs a ReLU module right after the first layer {name!r}; here it is {kind}.")
