"""Slow and obvious twins of the label rules: one update at a time, numpy, loops."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def greedy(scores: Array, impact: float, certain: list[int], size: int) -> list[int]:
    """LLG's two steps: what is certain, then the lowest score again and again, each paid for by the impact."""
    scores = scores.copy()
    found = []
    for label in certain:
        found.append(label)
        scores[label] -= impact
    while len(found) < size:
        label = int(np.argmin(scores))
        found.append(label)
        scores[label] -= impact
    return sorted(found)


def negative(scores: Array, size: int) -> list[int]:
    """The classes with a negative score, at most `size` of them, from the lowest."""
    return [int(label) for label in np.argsort(scores, kind="stable") if scores[label] < 0][:size]


def llg(weight: Array, size: int) -> list[int]:
    """Weight gradient (K, features)."""
    sums = np.array([sum(row) for row in weight])
    impact = (1 + 1 / len(sums)) / size * sum(value for value in sums if value < 0)
    return greedy(sums, impact, negative(sums, size), size)


def llg_measured(weight: Array, dummies: list[list[Array]], size: int) -> list[int]:
    """`dummies[r][i]`: the weight gradient of a batch of `size` images of class i, repetition r."""
    sums, classes = weight.sum(1), len(weight)
    impacts, offsets = [], [[] for _ in range(classes)]  # type: tuple[list[float], list[list[float]]]
    for batches in dummies:
        for own, gradient in enumerate(batches):
            for other in range(classes):
                value = float(gradient[other].sum())
                if other == own:
                    impacts.append(value / size)
                else:
                    offsets[other].append(value)
    impact = (1 + 1 / classes) * float(np.mean(impacts))
    shifted = sums - np.array([np.mean(values) for values in offsets])
    return greedy(shifted, impact, negative(sums, size), size)


def bias_corrected(bias: Array, size: int) -> list[int]:
    """Bias gradient (K,)."""
    return greedy(bias, sum(value for value in bias if value < 0) / size, negative(bias, size), size)


def bias_sign(bias: Array, size: int) -> list[int]:
    """The negative classes in turn, from the lowest; the lowest where none is negative."""
    classes = negative(bias, size) or [int(np.argmin(bias))]
    return sorted(classes[place % len(classes)] for place in range(size))


def grad_inversion(weight: Array, size: int) -> list[int]:
    """The classes with the smallest entries."""
    return sorted(sorted(range(len(weight)), key=lambda label: min(weight[label]))[:size])


def ilrg(weight: Array, bias: Array, head: tuple[Array, Array], size: int, *, shrinkage: float = 0.0) -> Array:
    """The real-valued counts; `head` is the last layer's weight and bias."""
    classes = len(bias)
    together = sum(bias[c] * weight[c] for c in range(classes)) / sum(bias[c] ** 2 for c in range(classes))
    pull = shrinkage**2 * float(np.mean(bias**2))
    rows, values = [np.ones(classes)], [float(size)]
    probabilities = []
    for label in range(classes):
        feature = (bias[label] * weight[label] + pull * together) / (bias[label] ** 2 + pull)
        logits = head[0] @ feature + head[1]
        exponentials = np.exp(logits - logits.max())
        probabilities.append(exponentials / exponentials.sum())
    for row in range(classes):
        rows.append(np.array([probabilities[label][row] - (label == row) for label in range(classes)]))
        values.append(size * bias[row])
    return np.asarray(np.linalg.lstsq(np.stack(rows), np.array(values), rcond=None)[0])


def nearest_whole(counts: Array, size: int) -> float:
    """The smallest squared distance of whole numbers that sum to `size` to `counts`, each clipped to 0..size."""

    def smallest(rest: list[float], left: int) -> float:
        if len(rest) == 1:
            return (rest[0] - left) ** 2
        return min((rest[0] - number) ** 2 + smallest(rest[1:], left - number) for number in range(left + 1))

    return smallest(np.clip(counts, 0, size).tolist(), size)


def label_scores(true: list[int], found: list[int], classes: int) -> tuple[float, float, float, float]:
    """Accuracy, precision, recall and existence, by one pass over the classes."""
    distance, both, named, occurring, agree = 0, 0, 0, 0, 0
    for label in range(classes):
        k, guess = true.count(label), found.count(label)
        distance += abs(k - guess)
        both += k > 0 and guess > 0
        named += guess > 0
        occurring += k > 0
        agree += (k > 0) == (guess > 0)
    return 1 - distance / (2 * len(true)), both / named, both / occurring, agree / classes
