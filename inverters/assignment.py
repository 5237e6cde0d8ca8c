"""The loss that does not depend on the order of the images of an update."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gibench.errors import ShapeError


def assigned(found: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    r"""The mean squared error of the best assignment of slots to images, and that assignment.

    .. math:: \min_{\pi} \frac{1}{B} \sum_b \frac{1}{N} \lVert \hat x_{\pi(b)} - x_b \rVert^2

    Learning to Invert (Wu et al., UAI 2023). pi is found by the Hungarian algorithm on values alone, so that the loss
    is differentiated as if it were fixed; it is constant almost everywhere.

    Args:
        found: (U, S, C, H, W), S slots, S >= B.
        images: (U, B, C, H, W).

    Returns:
        (U,) and the slot of each image, (U, B), int64.

    Raises:
        ShapeError: fewer slots than images, or other shapes.
    """
    fits = found.ndim == images.ndim == 5 and len(found) == len(images) and found.shape[2:] == images.shape[2:]
    if not fits or found.shape[1] < images.shape[1]:
        raise ShapeError(f"cannot assign slots {tuple(found.shape)} to images {tuple(images.shape)}.")
    slots = _slots(found, images)
    chosen = found[torch.arange(len(found), device=found.device)[:, None], slots]
    return (chosen - images).square().flatten(1).mean(1), slots


@torch.no_grad()
def _slots(found: Tensor, images: Tensor) -> Tensor:
    if found.shape[1] == 1:
        return torch.zeros(len(found), 1, dtype=torch.int64, device=found.device)
    left, right = images.flatten(2).float(), found.flatten(2).float()
    # |x|^2 is the same for every slot; |f|^2 - 2 x f decides.
    costs = right.square().sum(2)[:, None] - 2 * left @ right.mT
    rows = [linear_sum_assignment(row)[1] for row in costs.cpu().nan_to_num(posinf=1e30, neginf=-1e30).numpy()]
    return torch.as_tensor(np.stack(rows), device=found.device)
