"""How many of the private labels an attack infers: as counts, and as classes that occur."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple


class LabelScores(NamedTuple):
    """The scores of one update, all in [0, 1], higher is better; see `label_scores`."""

    accuracy: float
    precision: float
    recall: float
    existence: float | None


def label_scores(
    labels: Sequence[int], inferred: Sequence[int | None], *, num_classes: int | None = None
) -> LabelScores:
    r"""Score the labels that were inferred of one update; their order does not matter.

    With k_c and \hat k_c the true and the inferred number of labels c among B images, E and \hat E the classes of which
    there is one at least:

    .. math:: accuracy = \frac{1}{B} \sum_c \min(k_c, \hat k_c), \quad precision = |E \cap \hat E| / |\hat E|, \quad
        recall = |E \cap \hat E| / |E|, \quad existence = 1 - |E \mathbin{\triangle} \hat E| / K

    `accuracy` is that of multisets, 1 - sum_c |k_c - \hat k_c| / 2B where all B labels are inferred (the "instance
    recall" of Ma et al., ICLR 2023). `existence` is their class-level accuracy LeAcc. Their LnAcc, the share of classes
    whose number is exactly right, is not among these.

    Args:
        labels: B true labels.
        inferred: B labels; None for an image that is left unlabeled, which counts as wrong. Without any label,
            precision is 0.
        num_classes: K; None leaves `existence` out.
    """
    true, found = Counter(labels), Counter(label for label in inferred if label is not None)
    classes, named = set(true), set(found)
    both = len(classes & named)
    return LabelScores(
        accuracy=(true & found).total() / len(labels),
        precision=both / len(named) if named else 0.0,
        recall=both / len(classes),
        existence=None if num_classes is None else 1 - len(classes ^ named) / num_classes,
    )
