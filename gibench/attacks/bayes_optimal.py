"""The Bayes-optimal adversary (Balunović, Dimitrov, Staab, Vechev, ICLR 2022), and its baselines."""

from gibench.attacks.gradient_matching import GradientMatching
from gibench.defenses import Density
from gibench.engine import Engine
from gibench.labels import Given, LabelSource
from gibench.likelihoods import Likelihood
from gibench.priors import TotalVariation
from gibench.search import Adam, Ball, Pixels, Ramp


def bayes_optimal(
    *,
    likelihood: Likelihood | None = None,
    steps: int = 200,
    rate: float = 0.5,
    decay: float = 0.97,
    start: float = 0.01,
    ramp_steps: int = 100,
    tv: float = 1.0,
    ball: Ball | None = None,
    box: bool = False,
    restarts: int = 1,
    labels: LabelSource | None = None,
    engine: Engine | None = None,
) -> GradientMatching:
    """Maximize, over the images, the posterior log p(g | x) + log p(x), averaged over a ball about them.

    The adversary that minimizes the risk P(|x - f(g)| > delta) answers with the center of the ball that holds most
    posterior mass; the surrogate, by Jensen's inequality, with the center of the largest mean log posterior. Here
    p(g | x) is the density of the client's own defense and p(x) = exp(-tv TV(x)) with the squared, circular total
    variation. With a plain distance as `likelihood` this is the paper's baseline (l1, l2, cosine): the same prior and
    search with a wrong density.

    As in the released code: N(0, I) start in the victim's units, no box, Adam whose rate is multiplied by `decay` at
    each step, 200 steps of which the likelihood's factor grows geometrically from `start` to 1 over the first 100, and
    the center of the ball alone. What the code finds by search on the attacked images (rate, decay, factors, weight of
    the prior) is to be tuned on others: `gibench tune`. Its second factor for the baselines is the inverse of `tv`
    here; its layer weights for them are left out. We differ in what a row answers, its best iterate under the final
    factor, where the code takes the last; and in the units of TV, pixels in [0, 1] (see `TotalVariation`).

    Args:
        likelihood: None is `gibench.defenses.Density()`, the client's defense.
        steps: iterations.
        rate: step size before the first step.
        decay: factor on the rate after each step.
        start: factor on the likelihood before the first step.
        ramp_steps: steps over which it grows geometrically to 1.
        tv: weight of the prior.
        ball: points at which the posterior is averaged.
        box: keep pixels in [0, 1].
        restarts: independent starts, of which the likelihood chooses.
        labels: where the labels come from; None takes those that the threat model grants.
        engine: how it is computed; None is `Engine()`.
    """
    return GradientMatching(
        likelihood=likelihood or Density(),
        priors=[TotalVariation(weight=tv, kind="squared")] if tv else [],
        search=Adam(
            steps=steps,
            rate=rate,
            schedule="exponential",
            decay=decay,
            ramp=Ramp(start=start, steps=ramp_steps),
        ),
        labels=labels or Given(),
        pixels=Pixels(start="normal", box=box),
        restarts=restarts,
        ball=ball,
        engine=engine,
    )
