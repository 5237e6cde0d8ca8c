"""iDLG: Improved Deep Leakage from Gradients (Zhao, Mopuri, Bilen 2020)."""

from gibench.attacks.gradient_matching import GradientMatching
from gibench.engine import Engine
from gibench.labels import IDLG
from gibench.likelihoods import Gaussian
from gibench.search import LBFGS, LineSearchName, Pixels


def idlg(
    *,
    steps: int = 300,
    target: float | None = 1e-6,
    line_search: LineSearchName = "none",
    restarts: int = 1,
    engine: Engine | None = None,
) -> GradientMatching:
    """Read the label off the last layer, then run DLG on the image alone. For B = 1.

    Defaults are the published code's: DLG's L-BFGS, and a stop once the squared distance is below 1e-6, which it tests
    every tenth call and we test at every call. As in `dlg`, a row answers with its best iterate.

    Args:
        steps: L-BFGS calls.
        line_search: of L-BFGS, for each image by itself; the published code has none.
        target: the distance at which a row stops; None goes on.
        restarts: independent starts; the published code has one.
        engine: how it is computed; None is `Engine()`.
    """
    return GradientMatching(
        likelihood=Gaussian(),
        search=LBFGS(steps=steps, target=target, line_search=line_search),
        labels=IDLG(),
        pixels=Pixels(start="normal", box=False),
        restarts=restarts,
        engine=engine,
    )
