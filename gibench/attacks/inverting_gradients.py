"""Inverting Gradients (Geiping, Bauermeister, Dröge, Moeller, NeurIPS 2020), and as breaching has it."""

from typing import Literal

from gibench.attacks.gradient_matching import GradientMatching
from gibench.engine import Engine
from gibench.errors import ConfigurationError
from gibench.labels import Given, LabelSource
from gibench.likelihoods import Cosine, Features, Likelihood
from gibench.priors import BatchNormStatistics, Prior, TotalVariation
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


def inverting_gradients_modern(
    *,
    steps: int = 24_000,
    rate: float = 0.1,
    warm_up: int = 50,
    tv: float = 0.1,
    features: float = 0.1,
    restarts: int = 1,
    labels: LabelSource | None = None,
    likelihood: Likelihood | None = None,
    hidden: Literal["searched", "drawn"] = "searched",
    engine: Engine | None = None,
) -> GradientMatching:
    """Inverting Gradients as breaching's `modern` configuration has it, from a random tile of 4 x 4 pixels.

    The cosine plus 0.1 times the mean square distance of the last layer's features, isotropic TV of 0.1 over colors and
    their opponents, Adam of rate 0.1 in the victim's units with the soft sign, a warm-up of 50 steps and cosine decay
    over 24,000, in a box. We differ in the following. TV is over pixels in [0, 1], over positions that have both
    neighbors; breaching's is over normalized pixels, with zeros beyond the last row and column: for a victim that
    normalizes, its 0.1 is about 0.1 / std here. The cosine decay spans all steps, where breaching starts it after the
    warm-up. Features are compared as `gibench.likelihoods.Features` says, equally for B = 1. And restarts are compared
    with the features' term, where breaching takes the cosine alone.

    Args:
        steps: iterations.
        rate: step size.
        warm_up: steps of the linear warm-up; fewer than `steps`.
        tv: weight of the total variation; 0 leaves it out.
        features: weight of the features; 0 leaves them out, as victims need whose last layer has no bias.
        restarts: independent starts, of which the likelihood chooses.
        labels: where the labels come from; None takes those that the threat model grants.
        likelihood: the distance to which the features are added; None is the cosine.
        hidden: see `GradientMatching`.
        engine: how it is computed; None is `Engine()`.
    """
    return GradientMatching(
        likelihood=_with_features(likelihood, features),
        priors=_color_variation(tv),
        search=Adam(steps=steps, rate=rate, signed="soft", schedule="cosine", warm_up=warm_up),
        labels=labels or Given(),
        pixels=Pixels(start="pattern", box=True),
        restarts=restarts,
        hidden=hidden,
        engine=engine,
    )


def inverting_gradients_legacy(
    *,
    steps: int = 24_000,
    rate: float = 0.1,
    tv: float = 0.1,
    features: float = 0.1,
    batch_norm: Literal["running", "exact", "proxy"] | None = None,
    batch_norm_weight: float = 5e-5,
    labels: LabelSource | None = None,
    likelihood: Likelihood | None = None,
    hidden: Literal["searched", "drawn"] = "searched",
    engine: Engine | None = None,
) -> GradientMatching:
    """Inverting Gradients as breaching's `legacy` configuration has it, from the mean color and without warm-up.

    All else is `inverting_gradients_modern`, with its differences, but for the prior of DeepInversion, which breaching
    includes with 5e-5: the statistics of the BatchNorm layers. It is off by default, since not every victim has them.
    Nothing is drawn, so that a restart would be the same search again.

    Args:
        steps: iterations.
        rate: step size.
        tv: weight of the total variation; 0 leaves it out.
        features: weight of the features; 0 leaves them out, as victims need whose last layer has no bias.
        batch_norm: which statistics the images are to have, see `gibench.priors.BatchNormStatistics`; None leaves the
            prior out. breaching takes the running ones.
        batch_norm_weight: of that prior.
        labels: where the labels come from; None takes those that the threat model grants.
        likelihood: the distance to which the features are added; None is the cosine.
        hidden: see `GradientMatching`.
        engine: how it is computed; None is `Engine()`.
    """
    statistics = [BatchNormStatistics(weight=batch_norm_weight, statistics=batch_norm)] if batch_norm else []
    return GradientMatching(
        likelihood=_with_features(likelihood, features),
        priors=[*_color_variation(tv), *statistics],
        search=Adam(steps=steps, rate=rate, signed="soft", schedule="cosine"),
        labels=labels or Given(),
        pixels=Pixels(start="zeros", box=True),
        hidden=hidden,
        engine=engine,
    )


def _with_features(likelihood: Likelihood | None, weight: float) -> Likelihood:
    distance = likelihood or Cosine()
    return Features(distance, weight=weight) if weight else distance


def _color_variation(weight: float) -> list[Prior]:
    return [TotalVariation(weight=weight, kind="isotropic", opponents=True)] if weight else []
