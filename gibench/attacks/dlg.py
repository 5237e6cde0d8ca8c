"""DLG: Deep Leakage from Gradients (Zhu, Liu, Han, NeurIPS 2019)."""

from gibench.attacks.gradient_matching import GradientMatching
from gibench.engine import Engine
from gibench.likelihoods import Gaussian
from gibench.search import LBFGS, LineSearchName, Pixels


def dlg(
    *, steps: int = 300, line_search: LineSearchName = "none", restarts: int = 1, engine: Engine | None = None
) -> GradientMatching:
    """Match the update in l2 over images and soft labels together, by L-BFGS from N(0, 1).

    Defaults are the published code's: 300 calls of L-BFGS with rate 1, 20 iterations each, 100 pairs of history and no
    line search; no box, no prior. It diverges often, and its success is bimodal. We differ in what a row answers: its
    best iterate by its own objective, clamped to [0, 1], where the code takes the last.

    Args:
        steps: L-BFGS calls.
        line_search: of L-BFGS, for each image by itself; the published code has none.
        restarts: independent starts; the published code has one.
        engine: how it is computed; None is `Engine()`.
    """
    return GradientMatching(
        likelihood=Gaussian(),
        search=LBFGS(steps=steps, line_search=line_search),
        labels=None,
        pixels=Pixels(start="normal", box=False),
        restarts=restarts,
        engine=engine,
    )
