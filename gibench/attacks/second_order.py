"""Second-order matching: the update's residual by Levenberg-Marquardt (ours)."""

from gibench.attacks.gradient_matching import GradientMatching
from gibench.engine import Engine
from gibench.errors import ConfigurationError
from gibench.labels import Given, LabelSource
from gibench.likelihoods import Gaussian, Likelihood
from gibench.priors import TotalVariation
from gibench.search import LevenbergMarquardt, Pixels
from gibench.search.pixels import Start


def second_order(
    *,
    steps: int | None = None,
    tv: float = 0.0,
    smoothing: float = 1e-3,
    start: Start = "uniform",
    box: bool = False,
    restarts: int = 1,
    labels: LabelSource | None = None,
    likelihood: Likelihood | None = None,
    search: LevenbergMarquardt | None = None,
    engine: Engine | None = None,
) -> GradientMatching:
    r"""Solve g(x) = g for the images as nonlinear least squares: damped Gauss-Newton steps on the update's residual.

    .. math:: \min_x \; \tfrac12 \lVert g(x) - g \rVert^2 / \sigma^2 + \alpha \, TV(x)

    First-order attacks stop far from a minimum of this wherever its curvature spreads over many decades, as a victim's
    Jacobian makes it; damped Gauss-Newton steps converge to a zero of the residual where the update determines the
    images and they have come near it. Each step costs a forward derivative per pixel, now and then, and some tens of
    products with the Jacobian; docs/second_order.md says what was measured.

    It needs a victim that is smooth. Where the update has fewer coordinates than there are pixels, or many directions
    without a trace, it needs a prior.

    Args:
        steps: at most; None is 60.
        tv: weight of the smoothed anisotropic total variation, relative to the likelihood; 0 leaves it out.
        smoothing: of the total variation, in pixels.
        start: of the images; "uniform" is random in the box.
        box: keep pixels in [0, 1] after every step. Off, as steps that are cut off at the box lose what a second-order
            step is worth: with directions without a trace, whose pixels leave it, the search all but stands still. The
            answer is clamped in any case.
        restarts: independent starts, of which the likelihood chooses.
        labels: where the labels come from; None takes those that the threat model grants.
        likelihood: None is half the squared distance; `gibench.defenses.Density()` is that of the client's defense.
        search: None is `LevenbergMarquardt` with its other defaults.
        engine: how values are computed; None is `Engine()`.
    """
    if search is not None and steps is not None:
        raise ConfigurationError("steps are those of the search; set them there.")
    return GradientMatching(
        likelihood=likelihood or Gaussian(sigma=1.0),
        priors=[TotalVariation(weight=tv, smoothing=smoothing)] if tv else [],
        search=search or LevenbergMarquardt(steps=60 if steps is None else steps),
        labels=labels or Given(),
        pixels=Pixels(start=start, box=box),
        restarts=restarts,
        engine=engine,
    )
