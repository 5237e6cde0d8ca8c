"""The analytic bias attack (Phong et al. 2017; Geiping et al., NeurIPS 2020, proposition 3.1)."""

import torch
from torch import Tensor, nn

from gibench.attacks.base import Attack
from gibench.attacks.posterior import white_box
from gibench.errors import RefusalError
from gibench.needs import Needs
from gibench.types import Observation, Reconstruction

SAME_IMAGE = 1e-3  # two rows whose ratios differ by less (root mean square) point at the same image
VALID_MARGIN = 1e-3  # a ratio that leaves [0, 1] by more is a mixture with negative weights


class BiasAttack(Attack):
    """Read the input of the first fully connected layer off its weight and bias gradient, in closed form.

    With z = W x + b and deltas d_n = dl/dz_n, dl/dW = sum_n d_n x_n^T and dl/db = sum_n d_n. For B = 1 every row gives
    x; we take the least-squares combination of all of them, x = dW^T db / |db|^2, which is exact without noise and the
    maximum-likelihood estimate under equal noise on dW. For B > 1 a row of dW / db is a mixture of the images, and
    an image alone where it alone activates the row: we answer with the B distinct valid rows of largest |db|.

    It needs no labels and no optimization, and one layer that sees the image itself: a fully connected layer with bias
    whose input has as many entries as the image. Its objective is the relative residual |dW - db x^T| / |dW|, for B > 1
    with the first image in place of all. Where no row is active (db = 0) there is no answer, and the image is NaN.
    """

    needs = Needs(batch_size=("known",))

    def forward(self, observation: Observation) -> Reconstruction:
        """See `Attack`."""
        self.check(observation.threat_model)
        name, _ = first_layer(observation, "the bias attack")
        weight, bias = observation.update[f"{name}.weight"], observation.update[f"{name}.bias"]
        size, victim = observation.known_batch_size(), white_box(observation)
        if size == 1:
            inputs = torch.einsum("uij,ui->uj", weight, bias) / bias.square().sum(1, keepdim=True)
            images = victim.denormalize(inputs.unflatten(1, (1, *observation.image_shape)))
        else:
            ratios = weight / bias[..., None]
            images = victim.denormalize(ratios.unflatten(2, observation.image_shape))
            images = torch.stack([self._rows(row, size, order) for row, order in zip(images, bias.abs(), strict=True)])
            inputs = victim.normalize(images[:, 0]).flatten(1)
        residual = weight - bias[..., None] * inputs[:, None]
        return Reconstruction(
            images=images.masked_fill(~images.isfinite(), torch.nan).clamp(0, 1),  # else infinity would pass as white
            labels=None,
            objective=residual.flatten(1).norm(dim=1) / weight.flatten(1).norm(dim=1),
            gradient_evaluations=torch.zeros(observation.updates, dtype=torch.int64),
        )

    @staticmethod
    def _rows(candidates: Tensor, size: int, strength: Tensor) -> Tensor:
        """Choose `size` of the candidate images (rows, C, H, W): valid before invalid, strong before weak, distinct.

        Where there are fewer distinct ones, the best are repeated.
        """
        flat = candidates.flatten(1)
        finite = flat.isfinite().all(1)
        valid = finite & (flat.amin(1) > -VALID_MARGIN) & (flat.amax(1) < 1 + VALID_MARGIN)
        merits = list(zip(valid.tolist(), finite.tolist(), strength.tolist(), strict=True))
        rank = sorted(range(len(merits)), key=merits.__getitem__, reverse=True)
        chosen: list[int] = []
        for row in rank:
            distances = [(flat[row] - flat[other]).square().mean().sqrt() for other in chosen]
            if all(distance > SAME_IMAGE for distance in distances):
                chosen.append(row)
            if len(chosen) == size:
                break
        return candidates[(chosen + size * rank)[:size]]


def first_layer(observation: Observation, attack: str) -> tuple[str, nn.Linear]:
    """The name and the first layer with weights, which must be fully connected with bias and see the whole image.

    Raises:
        RefusalError: where it is not; `attack` says who needs it.
    """
    pixels = torch.Size(observation.image_shape).numel()
    layers = [(name, layer) for name, layer in observation.victim.named_modules() if _weighted(layer)]
    name, layer = layers[0] if layers else ("", nn.Identity())
    if not isinstance(layer, nn.Linear) or layer.bias is None or layer.in_features != pixels:
        raise RefusalError(
            f"{attack} needs a first layer that is fully connected with bias and sees all {pixels} pixels; "
            f"here it is {type(layer).__name__}."
        )
    return name, layer


def _weighted(layer: nn.Module) -> bool:
    return bool(list(layer.parameters(recurse=False)))
