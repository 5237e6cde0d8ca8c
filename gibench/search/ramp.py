"""The schedule of the likelihood's factor: from a weak say of the update to its full one."""

from gibench.errors import ConfigurationError


class Ramp:
    """factor_t = start (end / start)^(t / steps) up to step `steps`, then `end` (Balunović et al., ICLR 2022).

    Their code begins at min(c s^2, 1) with s the first parameter of the defense, sigma for noise but the pruned share
    for pruning, and ends at 1 for the Bayes-optimal attack; for the baselines both ends are tuned. Here both are
    stated. Iterates are compared under the final factor alone.

    Args:
        start: factor before the first step; positive.
        end: factor from step `steps` on; positive.
        steps: length of the ramp; 100 in the published code, followed by 100 steps at the end.
    """

    def __init__(self, *, start: float, end: float = 1.0, steps: int = 100) -> None:
        if not start > 0 or not end > 0 or steps < 1:
            raise ConfigurationError(f"start is {start}, end {end}, steps {steps}; all must be positive.")
        self.start = start
        self.end = end
        self.steps = steps

    def __call__(self, step: int) -> float:
        """The factor before iteration `step`, counted from 0."""
        return self.end if step >= self.steps else self.start * (self.end / self.start) ** (step / self.steps)
