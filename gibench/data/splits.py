"""The three disjoint splits (rule R3) and the random order of their images.

Both follow from SHA-256 of the image ids alone, so they depend on no library's random numbers and never move.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from gibench.seeding import derive

SplitName = Literal["prior", "tune", "score"]
"""prior trains inverters, generators and victims; tune chooses hyper-parameters; score is reported."""

SPLIT_NAMES: tuple[SplitName, ...] = ("prior", "tune", "score")


class Split(NamedTuple):
    """The images of one split, ordered by their place in the data set.

    images: (N, C, H, W), float32 in [0, 1]. labels: (N,), int64. ids: N names that are stable forever.
    """

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]


def shuffled(ids: Sequence[str], *key: str | int) -> list[int]:
    """Return the positions 0..N-1 in a random order that depends on `key`; new images do not reorder the others."""
    return sorted(range(len(ids)), key=lambda position: derive(*key, ids[position]))


def tune_and_score(ids: Sequence[str]) -> dict[SplitName, list[int]]:
    """Divide official test images: a fixed random 20 % of their positions for tune, the others for score."""
    order = shuffled(ids, "split")
    tuned = round(0.2 * len(ids))
    return {"tune": sorted(order[:tuned]), "score": sorted(order[tuned:])}


def partition(ids: Sequence[str], labels: Sequence[int]) -> dict[SplitName, list[int]]:
    """Divide images without an official test set: a fixed random 60 % for prior, 20 % for tune, 20 % for score.

    Classes keep these shares within one image: the images of each class are spread evenly over [0, 1) in a random order
    from a random start (systematic sampling) and cut at 0.6 and 0.8.
    """
    counts, seen = Counter(labels), Counter[int]()
    rows: dict[SplitName, list[int]] = {"prior": [], "tune": [], "score": []}
    for position in shuffled(ids, "split"):
        label = labels[position]
        place = (seen[label] + derive("class", label) / 2**63) / counts[label]
        seen[label] += 1
        rows["prior" if place < 0.6 else "tune" if place < 0.8 else "score"].append(position)
    return {name: sorted(positions) for name, positions in rows.items()}


def ids_hash(ids: Sequence[str]) -> str:
    """Return the SHA-256 of the sorted ids: equal hashes mean the same images."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
