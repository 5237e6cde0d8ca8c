"""GGL: search a generator's latent without derivatives (Li, Zhang, Liu, Liu, CVPR 2022)."""

from gibench.attacks.gradient_matching import GradientMatching
from gibench.engine import Engine
from gibench.labels import Given, LabelSource
from gibench.likelihoods import Gaussian, Likelihood
from gibench.search import CMAES, Latent
from gibench.search.generator import Generator


def ggl(
    *,
    generator: Generator,
    steps: int = 16,
    population: int = 50,
    latent_weight: float = 0.1,
    resample: bool = False,
    restarts: int = 1,
    labels: LabelSource | None = None,
    likelihood: Likelihood | None = None,
    engine: Engine | None = None,
) -> GradientMatching:
    r"""Match the update over the latent of a generator by CMA-ES, which asks for values alone.

    .. math:: \min_z \tfrac12 \lVert T(g(G(z))) - g \rVert^2 + \tfrac{w}{2} \lVert z \rVert^2

    A search without derivatives takes any defense T that can be simulated; here T is the likelihood's matter, with
    `gibench.defenses.Density` where the defense is known. Defaults are those with which GIFD's authors ran it: 800
    candidates, 50 in each generation. The penalty is the latent's own prior, where the paper has a
    Kullback-Leibler divergence of the statistics of z from N(0, 1).

    Args:
        generator: G, such as `generators.load_generator` reads one.
        steps: generations.
        population: candidates of a generation.
        latent_weight: w.
        resample: bring the generator's images to the victim's size.
        restarts: independent searches, of which the likelihood chooses.
        labels: where the labels come from; None takes those that the threat model grants.
        likelihood: None is half the squared distance.
        engine: how it is computed; None is `Engine()`.
    """
    return GradientMatching(
        likelihood=likelihood or Gaussian(sigma=1.0),
        search=CMAES(steps=steps, population=population),
        labels=labels or Given(),
        pixels=Latent(generator=generator, weight=latent_weight, resample=resample),
        restarts=restarts,
        engine=engine,
    )
