r"""How well anybody can reconstruct from a noisy update: Cramér-Rao bounds from the Jacobian's singular values.

The update is g = g(x) + sigma e, e ~ N(0, I), so that its Fisher information about x is F = J^T J / sigma^2. With
singular values s_i of J and N pixels, the expected MSE of any estimate is bounded from below; in dB, -10 log10 of that
bound is the PSNR of the least expected MSE. It is no bound on a mean of PSNRs, which may exceed it: -log is convex, so
that the mean of -log10(MSE) is at least -log10 of the mean MSE (Jensen).

- unbiased, no prior: :math:`\mathrm{E[MSE]} \ge \frac{\sigma^2}{N} \sum_{s_i > 0} s_i^{-2}` over the identifiable
  directions; in a null direction the variance of an unbiased estimate is infinite.
- with a prior of variance tau^2 per pixel (van Trees, 1968):
  :math:`\mathrm{E[MSE]} \ge \frac{1}{N} \sum_i (s_i^2 / \sigma^2 + 1 / \tau^2)^{-1}`; a null direction costs tau^2.

The second is attained by the posterior mean where g is linear and the prior Gaussian. For a network it is that bound
for the network linearized at the private images: van Trees' own averages F over the prior first, and is lower. Images
are no independent pixels either: whoever knows more of them than their range does better, which is what priors are for.
tau^2 = 1/12 is the variance of a pixel that is uniform on [0, 1].
"""

import math

import torch
from torch import Tensor

from gibench.diagnostics.spectrum import Amount, AnySpectrum, Spectrum
from gibench.errors import ConfigurationError
from gibench.metrics.image_quality import PSNR_CEILING

PRIOR_VARIANCE = 1 / 12
"""Variance of a pixel that is uniform on [0, 1]."""


def unbiased_mse_bound(spectrum: Spectrum, *, sigma: float) -> float:
    """Return the least expected MSE without bias, by the error in the identifiable directions alone.

    Args:
        spectrum: of J.
        sigma: standard deviation of the noise on each entry of the update.
    """
    _check(sigma, PRIOR_VARIANCE)
    kept = spectrum.values[: spectrum.rank]
    return sigma**2 * float(kept.pow(-2).sum()) / spectrum.unknowns


def unbiased_psnr_bound(spectrum: Spectrum, *, sigma: float) -> float:
    """Return the PSNR (dB) of `unbiased_mse_bound`, at most 100."""
    return _decibels(unbiased_mse_bound(spectrum, sigma=sigma))


def bayesian_mse_bound(spectrum: AnySpectrum, *, sigma: float, prior_variance: float = PRIOR_VARIANCE) -> Amount:
    """Return the least expected MSE of the linearized problem, prior Gaussian, and its error.

    Args:
        spectrum: of J.
        sigma: standard deviation of the noise on each entry of the update; 0 leaves the null directions to the prior:
            null / N * prior_variance.
        prior_variance: tau^2 of each pixel.

    Raises:
        ConfigurationError: a setting is out of range, or sigma is 0 and the null directions are not known.
    """
    _check(sigma, prior_variance)
    if sigma == 0:
        _require_exact(spectrum)
        left = spectrum.total(lambda s: prior_variance * (s == 0).to(s))
    else:
        left = spectrum.total(lambda s: sigma**2 * prior_variance / (prior_variance * s**2 + sigma**2))
    return Amount(max(left.value, 0.0) / spectrum.unknowns, left.error / spectrum.unknowns)


def bayesian_psnr_bound(spectrum: AnySpectrum, *, sigma: float, prior_variance: float = PRIOR_VARIANCE) -> Amount:
    """Return the PSNR (dB) of `bayesian_mse_bound`, at most 100, and its error; arguments and errors as there."""
    least = bayesian_mse_bound(spectrum, sigma=sigma, prior_variance=prior_variance)
    bound = _decibels(least.value)
    return Amount(bound, 0.0 if bound == PSNR_CEILING else 10 / math.log(10) * least.error / least.value)


def effective_directions(spectrum: AnySpectrum, *, sigma: float, prior_variance: float = PRIOR_VARIANCE) -> Amount:
    r"""Return how many directions stand above the noise, :math:`\sum_i \tau^2 s_i^2 / (\tau^2 s_i^2 + \sigma^2)`.

    A direction whose trace is as large as the noise counts half. Without noise it is the rank.

    Args: as in `bayesian_psnr_bound`.
    """
    _check(sigma, prior_variance)
    if sigma == 0:
        _require_exact(spectrum)
        return spectrum.total(lambda s: (s > 0).to(s))
    return spectrum.total(lambda s: 1 / (1 + sigma**2 / (prior_variance * s**2).clamp(min=torch.finfo(s.dtype).tiny)))


def information(spectrum: AnySpectrum, *, sigma: float, prior_variance: float = PRIOR_VARIANCE) -> Amount:
    r"""Return what the update says of the images, in bits: :math:`\frac12 \sum_i \log_2 (1 + \tau^2 s_i^2 / \sigma^2)`.

    It is the mutual information of the linearized problem: by how much the update shrinks the volume in which the
    images may lie.

    Args: as in `bayesian_psnr_bound`; sigma is positive.
    """
    _check(sigma, prior_variance)
    if sigma == 0:
        raise ConfigurationError("without noise an update says infinitely much; set sigma above 0.")

    def bits(s: Tensor) -> Tensor:
        return torch.log1p(prior_variance * s**2 / sigma**2) / (2 * math.log(2))

    return spectrum.total(bits)


def _decibels(mean_square: float) -> float:
    return min(-10 * math.log10(mean_square), PSNR_CEILING) if mean_square > 0 else PSNR_CEILING


def _require_exact(spectrum: AnySpectrum) -> None:
    if not isinstance(spectrum, Spectrum):
        raise ConfigurationError("an estimated spectrum does not know its null directions; set sigma above 0.")


def _check(sigma: float, prior_variance: float) -> None:
    if not sigma >= 0 or not prior_variance > 0:
        raise ConfigurationError(f"bounds need sigma >= 0 and prior_variance > 0; got {sigma} and {prior_variance}.")
