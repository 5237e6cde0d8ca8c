"""Total variation against a loop over pixels, and its derivative."""

import pytest
import torch
from helpers import batch_of, small_victim
from references import matching as reference

from gibench.clients import FedSGD
from gibench.errors import ConfigurationError
from gibench.priors import TotalVariation
from gibench.priors.total_variation import total_variation


def test_anisotropic_is_the_mean_of_absolute_differences() -> None:
    images = torch.rand(3, 2, 3, 5, 7, dtype=torch.float64)
    expected = torch.stack([reference.total_variation(batch) for batch in images])
    torch.testing.assert_close(total_variation(images), expected)


def test_isotropic_on_a_ramp() -> None:
    """X = 0.1 w + 0.2 h has the same gradient everywhere: sqrt(0.05)."""
    ramp = 0.1 * torch.arange(4.0, dtype=torch.float64) + 0.2 * torch.arange(3.0, dtype=torch.float64)[:, None]
    found = total_variation(ramp.expand(1, 1, 3, 3, 4), kind="isotropic")
    torch.testing.assert_close(found, torch.tensor([0.05**0.5], dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["anisotropic", "isotropic"])
def test_weighted_by_row_and_differentiable(kind: str) -> None:
    batch = batch_of(2, 2)
    observation = FedSGD(small_victim())(batch)
    prior = TotalVariation(weight=0.3, kind=kind)  # type: ignore[arg-type]
    found = prior(batch.images, observation)
    torch.testing.assert_close(found, 0.3 * total_variation(batch.images, kind=kind))  # type: ignore[arg-type]
    images = torch.rand(1, 1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: prior(x, observation), images)


def test_a_negative_weight_is_named() -> None:
    with pytest.raises(ConfigurationError):
        TotalVariation(weight=-1.0)
