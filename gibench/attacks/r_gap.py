"""R-GAP: "R-GAP: Recursive Gradient Attack on Privacy" (Zhu and Blaschko, ICLR 2021)."""

import math
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor

from gibench.attacks.base import Attack
from gibench.attacks.posterior import white_box
from gibench.errors import RefusalError
from gibench.needs import Needs
from gibench.types import Observation, Reconstruction, Update
from gibench.victims.chain import Chain, Layer, factor, gradient_matrix, read_chain, weight_matrix

TURN = 1.2784645427610738
"""The margin mu at which -mu / (1 + e^mu) is least, 1 + e^mu = mu e^mu; values between that and 0 have two margins."""

LARGEST = 700.0
"""The largest margin that is looked for: beyond it the gradient is below 1e-301."""

UNLABELED = -1
"""Of a reconstruction that names no label; see `gibench.scoring`."""

REFINEMENTS = 3
"""Corrections of a least-squares solution; each divides its error by about 1e16 / condition^2."""


class Partial(NamedTuple):
    """A reconstruction under way: row of the observation, label, k = dl/dz of the layer in turn, and then its input."""

    row: int
    label: int
    k: Tensor
    inputs: Tensor


class Answer(NamedTuple):
    """What a reconstruction comes to, and its rank among those of its update: the least is kept."""

    rank: tuple[float, float]
    objective: float
    image: Tensor
    label: int


class RGAP(Attack):
    r"""Recover the input of each layer in closed form, from the last to the first, at B = 1.

    A layer computes :math:`z = W x`, and the next layer's input is :math:`a(z)`, a LeakyReLU, so that z is known once
    that input is. With :math:`k = \partial l / \partial z` its weight gradient is linear in x, too, and x is the
    least-squares solution of both sets of equations,

    .. math:: W x = z, \qquad K x = \mathrm{vec}(\partial l / \partial W),

    of which :math:`k' = (W^T k) \odot a'` goes to the layer before. The input of a linear layer is its gradient's
    :math:`dW^T k / |k|^2` alone. It starts at the head: one with bias gives :math:`k = \partial l / \partial b` (as in
    breaching) and the label; with one logit and no bias, the margin :math:`\mu` solves
    :math:`\langle dw, w \rangle = -\mu / (1 + e^\mu)`, and :math:`k = \mp 1 / (1 + e^\mu)`.

    The victim is a chain of bias-free convolutions and linear layers; see `gibench.victims.chain.read_chain`, and
    `gibench.diagnostics.rank_deficiency` for whether the solution is unique. Where it is not, we take that of least
    norm.

    Differences from the authors' code: float64 throughout, where it rounds to float32 between the layers; a margin has
    two solutions where the prediction is right, which it avoids by flipping the label, and we try both, and both
    labels where the label is not granted; a root finder in place of 30,000 steps of Adam; the padding is left out of
    the unknowns in place of equations that set it to zero. The equations of both kinds are scaled to right-hand sides
    of equal norm, which matters for a rounded or noisy update alone, and where an earlier layer was not unique.

    A label is granted where the labels are known in order, and, since B = 1, where their counts or their set is. An
    update that leads to no finite answer gets NaN for an image, and no label.

    The objective is |g(x) - g| / |g|, of the update that the answer causes; by it we choose among several starts. Two
    margins can be equally right: a chain without biases maps c x to c z for c > 0, so that two multiples of one image,
    in the victim's units, cause the same update. Usually one of them leaves [0, 1]; else we answer with the larger.

    Raises:
        RefusalError: for other victims, and for B > 1, where the equations are those of a mixture of the images.
        ThreatModelError: unless the batch size is known and the update is a gradient.
    """

    needs = Needs(batch_size=("known",), update=("gradient",))

    def forward(self, observation: Observation) -> Reconstruction:
        """See `Attack`."""
        self.check(observation.threat_model)
        chain = read_chain(white_box(observation))
        if observation.known_batch_size() != 1:
            raise RefusalError("R-GAP recovers one image, of more a mixture at best; set the data's batch_size to 1.")
        update = {name: value.detach().to("cpu", torch.float64) for name, value in observation.update.items()}
        partials = [each for row in range(observation.updates) for each in starts(chain, observation, update, row)]
        for layer, behind in zip(chain.layers[-2::-1], chain.layers[:0:-1], strict=True):
            equations = Equations(layer)
            partials = [equations.advance(each, behind, update[f"{layer.name}.weight"][each.row]) for each in partials]
        return self._choose(observation, chain, partials)

    def _choose(self, observation: Observation, chain: Chain, partials: list[Partial]) -> Reconstruction:
        """Simulate what each answer would have sent, and keep the best of each row."""
        victim = white_box(observation)
        kind = next(iter(observation.update.values()))
        nothing = Answer((math.inf, 0.0), math.inf, kind.new_full(observation.image_shape, math.nan), UNLABELED)
        best = [nothing] * observation.updates
        exact = math.sqrt(torch.finfo(kind.dtype).eps)
        evaluations = torch.zeros(observation.updates, dtype=torch.int64)
        for row, label, _, inputs in partials:
            image = victim.denormalize(inputs.to(kind).reshape(observation.image_shape)).clamp(0, 1)
            with torch.no_grad():
                labels = torch.tensor([[label]], device=kind.device)
                simulated = observation.simulate(image[None, None], labels)
            objective = _distance(simulated, {name: value[[row]] for name, value in observation.update.items()})
            evaluations[row] += 1
            rank = max(exact, objective), -float(inputs.norm())
            if math.isfinite(objective) and rank < best[row].rank:
                best[row] = Answer(rank, objective, image, label)
        unnamed = _granted(observation) is not None or (chain.bias is None and chain.num_classes > 2)
        found = torch.tensor([[answer.label] for answer in best], device=kind.device)
        return Reconstruction(
            images=torch.stack([answer.image for answer in best])[:, None],
            labels=None if unnamed else found,
            objective=kind.new_tensor([answer.objective for answer in best]),
            gradient_evaluations=evaluations,
        )


class Equations:
    """The equations of one layer: what depends on its weights is computed once, for all updates."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        if not layer.linear:
            self.weight = weight_matrix(layer)
            self.normal = self.weight.T @ self.weight

    def advance(self, partial: Partial, behind: Layer, update: Tensor) -> Partial:
        """Go on from the layer behind this one, whose k and input are known, with this layer's dW (O, C, kh, kw)."""
        outputs = partial.inputs.flatten()
        slopes = torch.ones_like(outputs).masked_fill(outputs <= 0, self.layer.slope)
        k = slopes * _transposed(behind, partial.k).flatten()
        k = k.reshape(len(self.layer.weight), -1)
        if not (outputs.isfinite().all() and k.isfinite().all()):
            inputs = torch.full(self.layer.shape, math.nan, dtype=outputs.dtype)
        elif self.layer.linear:
            inputs = update.flatten(1).T @ k.flatten() / k.square().sum()
        else:
            inputs = self.solve(k, outputs / slopes, update.permute(0, 2, 3, 1).flatten(0, 2))
        return partial._replace(k=k, inputs=inputs)

    def solve(self, k: Tensor, outputs: Tensor, update: Tensor) -> Tensor:
        """Least squares of W x = outputs and K x_c = update[:, c]; update: (O * kh * kw, C). Returns x (C * H * W,).

        By the normal equations and corrections of their solution where the rank is safely full, else by a pivoted
        orthogonal factorization, which gives the x of least norm.
        """
        channels, height, width = self.layer.shape
        gradient = gradient_matrix(self.layer, k)
        scale = outputs.norm() / update.norm()
        gradient, update = scale * gradient, scale * update
        normal = self.normal.clone()
        blocks = normal.reshape(channels, height * width, channels, height * width).diagonal(dim1=0, dim2=2)
        blocks += (gradient.T @ gradient)[..., None]
        lower = factor(normal)
        if lower is None:
            return self._least_norm(gradient, outputs, update)
        inputs = torch.zeros_like(self.normal[0])
        for _ in range(1 + REFINEMENTS):
            first = self.weight.T @ (outputs - self.weight @ inputs)
            second = gradient.T @ (update - gradient @ inputs.reshape(channels, -1).T)
            inputs = inputs + torch.cholesky_solve((first + second.T.flatten())[:, None], lower)[:, 0]
        return inputs

    def _least_norm(self, gradient: Tensor, outputs: Tensor, update: Tensor) -> Tensor:
        basis, triangle = torch.linalg.qr(gradient)  # fewer equations, the same solutions
        each = torch.kron(torch.eye(self.layer.shape[0], dtype=gradient.dtype), triangle.contiguous())
        matrix = torch.cat([self.weight, each])
        right = torch.cat([outputs, (basis.T @ update).T.flatten()])
        found: Tensor = torch.linalg.lstsq(matrix, right[:, None], driver="gelsy").solution
        return found[:, 0]


def starts(chain: Chain, observation: Observation, update: Update, row: int) -> list[Partial]:
    """What the last layer's gradient leaves possible: its k and input, for each label and margin.

    `update` is that of the observation, float64 on the CPU.
    """
    head = chain.layers[-1]
    gradient = update[f"{head.name}.weight"][row]
    known = _granted(observation)
    granted = None if known is None else int(known[row])
    if chain.bias is not None:
        k = update[f"{head.name}.bias"][row]
        label = int(k.argmin()) if granted is None else granted  # p - onehot: the true class alone is negative
        return [Partial(row, label, k, gradient.T @ k / k.square().sum())]
    half = chain.num_classes // 2
    product = float((gradient * head.weight.flatten(1)).sum())
    found = []
    for label in (0, half) if granted is None else (granted,):
        for margin in margins(product):
            k = torch.tensor([(-1.0 if label >= half else 1.0) / (1 + math.exp(margin))], dtype=torch.float64)
            found.append(Partial(row, label, k, gradient[0] / k))
    return found


def margins(product: float) -> list[float]:
    """Solve -mu / (1 + e^mu) = product for mu: one solution for product >= 0, two below, down to -0.2785.

    A product below that, which noise may cause, has the margin of the least value.
    """
    if not math.isfinite(product):
        return [math.nan]

    def excess(margin: float) -> float:
        return -margin / (1 + math.exp(margin)) - product

    if product >= 0:
        return [brentq(excess, -product - 1, 0.0, xtol=1e-15, rtol=1e-15)]
    if excess(TURN) >= 0:
        return [TURN]
    ends = [(0.0, TURN)] + [(TURN, LARGEST)] * (excess(LARGEST) > 0)
    return [brentq(excess, *each, xtol=1e-15, rtol=1e-15) for each in ends]


def _granted(observation: Observation) -> Tensor | None:
    """The labels (U,) that the threat model grants: of one image, the class that is counted is the label."""
    if observation.labels is not None:
        return observation.labels[:, 0]
    return None if observation.label_counts is None else observation.label_counts.argmax(1)


def _transposed(layer: Layer, k: Tensor) -> Tensor:
    """W^T k."""
    with torch.enable_grad():
        inputs = torch.zeros(1, *layer.shape, dtype=k.dtype, requires_grad=True)
        outputs = layer(inputs)
        (found,) = torch.autograd.grad(outputs, inputs, k.reshape(outputs.shape))
    return found


def _distance(simulated: Update, observed: Update) -> float:
    """|g' - g| / |g| over all tensors."""
    squares = [((simulated[name] - value).square().sum(), value.square().sum()) for name, value in observed.items()]
    above, below = (torch.stack(each).sum() for each in zip(*squares, strict=True))
    return float((above / below).sqrt())
