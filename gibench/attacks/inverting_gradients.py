"""Inverting Gradients (Geiping, Bauermeister, Dröge, Moeller, NeurIPS 2020)."""

from typing import Literal

from gibench.attacks.gradient_matching import GradientMatching
from gibench.engine import Engine
from gibench.errors import ConfigurationError
from gibench.labels import Given, LabelSource
from gibench.likelihoods import Cosine, Likelihood
from gibench.priors import TotalVariation
from gibench.search import Adam, Pixels


def inverting_gradients(
    *,
    steps: int = 4800,
    rate: float = 0.1,
    signed: bool = True,
    tv: float = 1e-4,
    restarts: int = 1,
    labels: LabelSource | None = None,
    optimize_labels: bool = False,
    likelihood: Likelihood | None = None,
    hidden: Literal["searched", "drawn"] = "searched",
    engine: Engine | None = None,
) -> GradientMatching:
    """Match the direction of the update under total variation, by signed Adam with a box, from N(0, 1).

    Defaults are those behind the paper's tables: 4,800 steps (24,000 for a single image), rate 0.1 in the victim's
    units with the step schedule, signed, anisotropic TV of 1e-4, labels known. Smooth victims such as LeNet prefer
    unsigned steps. We differ in what a row answers: its best iterate by its own objective, where the code takes the
    last; and in the units of TV, pixels in [0, 1] (see `TotalVariation`).

    Args:
        steps: iterations.
        rate: step size.
        signed: whether Adam gets the sign of the derivative.
        tv: weight of the total variation; 0 leaves it out.
        restarts: independent starts, of which the likelihood chooses.
        labels: where the labels come from; None takes those that the threat model grants.
        optimize_labels: search a soft label for each image instead (Huang et al., NeurIPS 2021).
        likelihood: None is the cosine; against a defense, a part of it, or `gibench.defenses.Density` with the cosine
            as its `distance`.
        hidden: see `GradientMatching`.
        engine: how it is computed; None is `Engine()`.
    """
    if optimize_labels and labels is not None:
        raise ConfigurationError("labels are given by a rule or optimized; choose one.")
    return GradientMatching(
        likelihood=likelihood or Cosine(),
        priors=[TotalVariation(weight=tv)] if tv else [],
        search=Adam(steps=steps, rate=rate, signed=signed),
        labels=None if optimize_labels else labels or Given(),
        pixels=Pixels(start="normal", box=True),
        restarts=restarts,
        hidden=hidden,
        engine=engine,
    )
