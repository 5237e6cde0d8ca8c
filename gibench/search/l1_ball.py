"""Projection onto the l1-ball."""

import torch
from torch import Tensor


def project_to_l1_ball(points: Tensor, radius: float) -> Tensor:
    r"""Return the nearest points, in l2, of length at most `radius` in l1.

    .. math:: p_i = \operatorname{sign}(v_i) \max(|v_i| - \tau, 0), \qquad \sum_i |p_i| = r

    with the threshold tau from the sorted magnitudes (Duchi, Shalev-Shwartz, Singer, Chandra, ICML 2008): exact, for
    all points at once. What is inside stays as it is.

    Args:
        points: (N, n).
        radius: r, positive.
    """
    sizes = points.abs()
    falling = sizes.sort(1, descending=True).values
    count = torch.arange(1, points.shape[1] + 1, device=points.device)
    thresholds = (falling.cumsum(1) - radius) / count
    used = (falling > thresholds).sum(1, keepdim=True).clamp(min=1)  # as long as the next entry stays above
    threshold = thresholds.gather(1, used - 1)
    inside = sizes.sum(1, keepdim=True) <= radius
    return torch.where(inside, points, points.sign() * (sizes - threshold).clamp(min=0))
