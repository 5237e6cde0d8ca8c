"""GIFD: search a generator's latent, then its features, layer by layer (Fang, Chen, Wang, Wang, Xia, ICCV 2023)."""

from collections.abc import Sequence

from gibench.attacks.gradient_matching import GradientMatching
from gibench.engine import Engine
from gibench.errors import ConfigurationError
from gibench.labels import Given, LabelSource
from gibench.likelihoods import Cosine, Likelihood
from gibench.priors import L2Norm, Prior, TotalVariation
from gibench.search import Adam, Features, Latent, Stage
from gibench.search.generator import Generator


def gifd(
    *,
    generator: Generator,
    steps: int = 1000,
    rate: float = 0.1,
    move: float = 0.05,
    radii: Sequence[float] | None = None,
    stages: Sequence[int] | None = None,
    tv: float = 1e-4,
    l2: float = 1e-6,
    resample: bool = False,
    restarts: int = 4,
    labels: LabelSource | None = None,
    likelihood: Likelihood | None = None,
    engine: Engine | None = None,
) -> GradientMatching:
    r"""Match the direction of the update over a generator's latent, then over what enters each of its stages in turn.

    .. math:: f_i = \arg\min D(g(G_{i:}(f)), g) + \alpha \, TV(G_{i:}(f)), \qquad \lVert f - f_i^0 \rVert_1 \le r_i

    f_i^0 is what the search of the stage before, pushed through one stage, ended with; the latent keeps its length. The
    answer is that of the stage and restart that matches best. Defaults are the paper's: 1,000 steps for each stage,
    rate 0.1 ramped up and down, TV of 1e-4, 4 restarts. We differ in the following. The public code answers with the
    last restart's image under the best one's score; ours is the best's. It orders inferred labels by the true ones. Its
    radii, 1,000 to 7,500, are for the features of BigGAN and StyleGAN2; ours are `move` for each feature. And a stage
    goes on from the best iterate of the one before, by its own objective.

    Args:
        generator: G, such as `generators.load_generator` reads one.
        steps: iterations for each stage.
        rate: step size.
        move: r_i for each number of f_i: how far a feature may move on the average.
        radii: r_i themselves, one for each of `stages`, instead of `move`.
        stages: whose features are searched after the latent, rising from 1; None is all.
        tv: weight of the total variation; 0 leaves it out.
        l2: weight of the norm of the images; 0 leaves it out.
        resample: bring the generator's images to the victim's size.
        restarts: random latents.
        labels: where the labels come from; None takes those that the threat model grants.
        likelihood: None is the cosine; `gibench.defenses.Density` is that of the client's defense.
        engine: how it is computed; None is `Engine()`.

    Raises:
        ConfigurationError: there is no such stage, or there are not as many radii as stages.
    """
    chosen = list(range(1, generator.depth)) if stages is None else list(stages)
    if radii is None:
        radii = [move * generator.features_shape(stage).numel() for stage in chosen]
    if len(radii) != len(chosen):
        raise ConfigurationError(f"there are {len(radii)} radii for {len(chosen)} stages; name one for each.")
    priors: list[Prior] = [TotalVariation(weight=tv)] if tv else []
    if l2:
        priors.append(L2Norm(weight=l2))

    def search() -> Adam:
        return Adam(steps=steps, rate=rate, schedule="ramped")

    return GradientMatching(
        likelihood=likelihood or Cosine(),
        priors=priors,
        search=search(),
        labels=labels or Given(),
        pixels=Latent(generator=generator, norm="kept", resample=resample),
        then=[
            Stage(pixels=Features(generator=generator, stage=stage, radius=radius, resample=resample), search=search())
            for stage, radius in zip(chosen, radii, strict=True)
        ],
        restarts=restarts,
        engine=engine,
    )
