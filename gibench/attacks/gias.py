"""GIAS: search a generator's latent, then its weights (Jeon, Kim, Lee, Oh, Ok, NeurIPS 2021)."""

from gibench.attacks.gradient_matching import GradientMatching
from gibench.engine import Engine
from gibench.errors import ConfigurationError
from gibench.labels import Given, LabelSource
from gibench.likelihoods import Cosine, Likelihood
from gibench.priors import TotalVariation
from gibench.search import Adam, GeneratorWeights, Latent, Stage
from gibench.search.generator import Generator
from gibench.search.latent import Norm


def gias(
    *,
    generator: Generator,
    latent_steps: int = 500,
    latent_rate: float = 0.03,
    weight_steps: int = 5000,
    weight_rate: float = 1e-3,
    tv: float = 1e-6,
    norm: Norm = "free",
    latent_weight: float = 0.0,
    resample: bool = False,
    restarts: int = 3,
    labels: LabelSource | None = None,
    likelihood: Likelihood | None = None,
    engine: Engine | None = None,
) -> GradientMatching:
    r"""Match the direction of the update over the range of a generator G_w, then over a neighborhood of that range.

    .. math:: \min_z D(g(G_w(z)), g) + \alpha \, TV(G_w(z)), \qquad \min_w D(g(G_w(z)), g) + \alpha \, TV(G_w(z))

    Defaults are those of the paper's script for images of 32 pixels: cosine, 500 steps of Adam on the latent, 5,000 on
    the weights, from each of 3 random latents, with IG's step schedule. We differ in the following. Every restart of
    every update is searched at once, each image with its own weights; the code copies the generator for each. A stage
    goes on from the best iterate of the one before, where the code takes the last. Labels are used as they come; the
    code leaves out images whose label occurred. And TV is over pixels in [0, 1].

    Args:
        generator: G, such as `generators.load_generator` reads one.
        latent_steps: iterations over the latent.
        latent_rate: their step size.
        weight_steps: iterations over the weights; 0 leaves this stage out.
        weight_rate: their step size.
        tv: weight of the total variation; 0 leaves it out.
        norm: of the latent, see `gibench.search.Latent`.
        latent_weight: weight of the latent's own prior.
        resample: bring the generator's images to the victim's size.
        restarts: random latents, of which the likelihood chooses, after all stages.
        labels: where the labels come from; None takes those that the threat model grants.
        likelihood: None is the cosine; `gibench.defenses.Density` is that of the client's defense.
        engine: how it is computed; None is `Engine()`.
    """
    if weight_steps < 0:
        raise ConfigurationError(f"weight_steps is {weight_steps}; it must be at least 0.")
    weights = GeneratorWeights(generator=generator, resample=resample)
    further = [Stage(pixels=weights, search=Adam(steps=weight_steps, rate=weight_rate))] if weight_steps else []
    return GradientMatching(
        likelihood=likelihood or Cosine(),
        priors=[TotalVariation(weight=tv)] if tv else [],
        search=Adam(steps=latent_steps, rate=latent_rate),
        labels=labels or Given(),
        pixels=Latent(generator=generator, norm=norm, weight=latent_weight, resample=resample),
        then=further,
        restarts=restarts,
        engine=engine,
    )
