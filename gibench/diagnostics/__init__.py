"""What to know before an attack is run: second derivatives, the environment."""

from gibench.diagnostics.environment import Finding, doctor, environment_report, package_versions
from gibench.diagnostics.second_derivatives import probe_second_derivatives

__all__ = ["Finding", "doctor", "environment_report", "package_versions", "probe_second_derivatives"]
