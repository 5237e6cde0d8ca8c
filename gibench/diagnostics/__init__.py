"""What to know before an attack is run: second derivatives, the environment, what an update leaves open."""

from gibench.diagnostics.cramer_rao import (
    bayesian_mse_bound,
    bayesian_psnr_bound,
    effective_directions,
    information,
    unbiased_mse_bound,
    unbiased_psnr_bound,
)
from gibench.diagnostics.environment import Finding, doctor, environment_report, package_versions
from gibench.diagnostics.identifiability import (
    Identifiability,
    NoiseFloor,
    identifiability,
    in_double,
    read_identifiability,
    write_identifiability,
)
from gibench.diagnostics.jacobian import Jacobian
from gibench.diagnostics.layer_rank import LayerRank, rank_deficiency
from gibench.diagnostics.leak import first_updates, print_leak
from gibench.diagnostics.second_derivatives import probe_second_derivatives
from gibench.diagnostics.spectrum import (
    EstimatedSpectrum,
    Spectrum,
    estimated_spectrum,
    exact_spectrum,
    jacobian_spectrum,
)

__all__ = [
    "EstimatedSpectrum",
    "Finding",
    "Identifiability",
    "Jacobian",
    "LayerRank",
    "NoiseFloor",
    "Spectrum",
    "bayesian_mse_bound",
    "bayesian_psnr_bound",
    "doctor",
    "effective_directions",
    "environment_report",
    "estimated_spectrum",
    "exact_spectrum",
    "first_updates",
    "identifiability",
    "in_double",
    "information",
    "jacobian_spectrum",
    "package_versions",
    "print_leak",
    "probe_second_derivatives",
    "rank_deficiency",
    "read_identifiability",
    "unbiased_mse_bound",
    "unbiased_psnr_bound",
    "write_identifiability",
]
