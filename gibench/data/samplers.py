"""Label samplers (rule R11): which images share a private batch.

Each sampler takes the labels of a split in the run's random order and yields, batch by batch, positions in that order,
each position at most once. It looks at no later batch, so a longer run extends a shorter one. All take the earliest
images that satisfy them, so that different samplers attack the same images where their rules allow it.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

from gibench.errors import ConfigurationError

SamplerName = Literal["natural", "distinct", "k_per_class", "one_class"]


def natural(labels: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield consecutive images, whatever their labels: a random batch."""
    for start in range(0, len(labels) - batch_size + 1, batch_size):
        yield list(range(start, start + batch_size))


def k_per_class(labels: Sequence[int], batch_size: int, k: int) -> Iterator[list[int]]:
    """Yield batches of exactly k images from each of batch_size / k classes."""
    waiting: dict[int, deque[int]] = defaultdict(deque)
    for position, label in enumerate(labels):
        waiting[label].append(position)
    while True:
        ready = [positions for positions in waiting.values() if len(positions) >= k]
        if len(ready) * k < batch_size:
            return
        ready.sort(key=lambda positions: positions[k - 1])
        yield sorted(positions.popleft() for positions in ready[: batch_size // k] for _ in range(k))


def distinct(labels: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield batches in which no label occurs twice."""
    return k_per_class(labels, batch_size, 1)


def one_class(labels: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield batches in which all labels are the same."""
    return k_per_class(labels, batch_size, batch_size)


def draw(
    labels: Sequence[int], *, sampler: SamplerName, batch_size: int, updates: int, k: int | None = None
) -> list[list[int]]:
    """Return `updates` batches of positions in `labels`.

    Raises:
        ConfigurationError: where the images do not suffice; the message says how many updates are possible.
    """
    if sampler == "k_per_class":
        batches = k_per_class(labels, batch_size, check_k(k, batch_size))
    else:
        batches = {"natural": natural, "distinct": distinct, "one_class": one_class}[sampler](labels, batch_size)
    drawn = list(islice(batches, updates))
    if len(drawn) < updates:
        raise ConfigurationError(
            f"sampler {sampler!r} makes {len(drawn)} updates of {batch_size} images from {len(labels)} images "
            f"of {len(set(labels))} classes, each used once; set updates to at most {len(drawn)} (asked: {updates})."
        )
    return drawn


def check_k(k: int | None, batch_size: int) -> int:
    """Return k, or raise ConfigurationError unless it divides the batch."""
    if k is None or k < 1 or batch_size % k:
        raise ConfigurationError(f"sampler 'k_per_class' needs k that divides batch_size {batch_size}; got {k}.")
    return k
