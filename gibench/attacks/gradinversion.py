"""GradInversion, "See through gradients" (Yin, Mallya, Vahdat, Alvarez, Kautz, Molchanov, CVPR 2021)."""

from gibench.attacks.gradient_matching import GradientMatching
from gibench.engine import Engine
from gibench.errors import ConfigurationError
from gibench.labels import GradInversionRule, LabelSource
from gibench.likelihoods import Gaussian
from gibench.priors import BatchNormStatistics, GroupConsistency, L2Norm, Prior, TotalVariation
from gibench.priors.batch_norm_statistics import Statistics
from gibench.priors.registration import Registration
from gibench.search import Adam, Pixels


def gradinversion(
    *,
    steps: int = 20_000,
    rate: float = 0.1,
    warm_up: int = 50,
    noise: float = 0.2,
    gradient: float = 1e-4,
    tv: float = 1e-4,
    l2: float = 1e-6,
    batch_norm: Statistics | None = "running",
    batch_norm_weight: float = 0.1,
    first_layer: float = 10.0,
    group: float = 0.01,
    registration: Registration = "none",
    group_start: int = 500,
    group_refresh: int = 100,
    restarts: int = 8,
    labels: LabelSource | None = None,
    engine: Engine | None = None,
) -> GradientMatching:
    r"""Match the update under four priors, by several seeds that agree on the images.

    .. math:: \frac{\alpha_G}{2} \lVert g(x) - g \rVert_2^2 + \alpha_{tv} TV(x) + \alpha_{l2} \lVert x \rVert_2
        + \alpha_{BN} R_{BN}(x) + \alpha_{group} \lVert x_s - E(x_{1..S}) \rVert_2

    There is no public code of the paper, whose own scale of the first term is not known to us. The weights 1e-4, 1e-4,
    1e-6 and 0.1, Adam's rate 0.1 with 50 steps of warm-up and a cosine to 0 over 20,000, and the box are breaching's;
    the factor of the first BatchNorm layer is DeepInversion's; the noise, 0.2 of the rate on the images after each
    step, is the paper's by breaching's comment, which itself adds 0.01 of the rate to the gradient; the weight 0.01 of
    the group is in breaching's comments, and its schedule, without registration, is that of GIAS. The number of seeds
    is ours.

    We differ in what is answered: of each seed its best iterate under the last consensus, and of the seeds the one
    whose update matches best, where the paper fine-tunes and averages. TV is over pixels (see `TotalVariation`), the
    norms are those of each image (see `L2Norm`, `GroupConsistency`). The weights fit one
    scale of gradients: on another victim the priors may outweigh the update, so that the prior alone belongs beside a
    result.

    Args:
        steps: iterations.
        rate: step size, in the victim's units.
        warm_up: steps over which the rate grows from 0.
        noise: standard deviation of what is added after each step, in units of the current rate.
        gradient: weight of half the squared distance of updates.
        tv: weight of the total variation; 0 leaves it out, as with all weights.
        l2: weight of the norm of the images.
        batch_norm: with which statistics the victim's layers are compared; None leaves them out, as for a victim
            without BatchNorm.
        batch_norm_weight: their weight.
        first_layer: factor on the weight of the first layer.
        group: weight of what makes the seeds agree.
        registration: how images are moved onto their mean before the consensus: "none", "translation" or "flow".
        group_start: steps before the first consensus.
        group_refresh: steps from one consensus to the next.
        restarts: seeds; with one, `group` must be 0.
        labels: where the labels come from; None infers them by the paper's rule, `Given()` takes those that the threat
            model grants.
        engine: how it is computed; None is `Engine()`.

    Raises:
        ConfigurationError: for bad settings; one seed and a group, or a group that would start after the last step.
    """
    if not gradient > 0:
        raise ConfigurationError(f"the weight of the update's distance is {gradient}; it must be positive.")
    priors: list[Prior] = []
    if tv:
        priors.append(TotalVariation(weight=tv))
    if l2:
        priors.append(L2Norm(weight=l2))
    if batch_norm is not None and batch_norm_weight:
        priors.append(BatchNormStatistics(weight=batch_norm_weight, statistics=batch_norm, first=first_layer))
    if group:
        priors.append(
            GroupConsistency(weight=group, registration=registration, start=group_start, refresh=group_refresh)
        )
    return GradientMatching(
        likelihood=Gaussian(sigma=gradient**-0.5),  # 1 / (2 sigma^2) is gradient / 2
        priors=priors,
        search=Adam(steps=steps, rate=rate, schedule="cosine", warm_up=warm_up, noise=noise),
        labels=labels or GradInversionRule(),
        pixels=Pixels(start="normal", box=True),
        restarts=restarts,
        engine=engine,
    )
