"""Feature hashing of updates: millions of coordinates summed into a few thousand buckets by a fixed random map.

    (S g)_b = sum over the coordinates i with h(i) = b of s(i) g_i,    S is buckets x P, one entry s(i) = +-1 per column

Weinberger et al., "Feature Hashing for Large Scale Multitask Learning" (ICML 2009). For any two updates x and y, over
the random map, the inner product of the hashed is unbiased, and what is lost is known:

    E <S x, S y> = <x, y>,    Var <S x, S y> = (1 / K) * sum over i != j of (x_i^2 y_j^2 + x_i y_i x_j y_j)

Of a subspace of N dimensions whose energy is spread over many coordinates, a few times N buckets keep the length of
every direction within about 1 +- sqrt(N / K), as a Gaussian sketch would; the tests hold this for LeNet's Jacobian. Any
subspace whatever may need about N^2 buckets (Nelson and Nguyen, FOCS 2013): where few coordinates hold the energy, two
of them in one bucket cannot be told apart.

The map, for anyone to rebuild. H is the first 64-bit word of MurmurHash3_x64_128 with seed 0 (mmh3's
`mmh3_x64_128_utupledigest(data, 0)[0]`):

    key  = H(the seed in decimal, the byte 0x1f, the parameter's name in UTF-8)
    word = H(the 8 bytes of key, then the 8 bytes of index, both little-endian)
    h    = (word >> 1) mod K,    s = -1 where word is odd, else +1

where index counts the entries of one update's tensor in row-major order. So a coordinate's bucket and sign depend on
its name, index, K and the seed alone: not on the other parameters, their order, the machine or the process. The
remainder favors no bucket by more than K / 2^63 of its share.
"""

from collections.abc import Mapping
from functools import lru_cache

import mmh3
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from gibench.errors import ConfigurationError, ShapeError

_AT_ONCE = 1 << 14
"""Indices hashed together: the temporary arrays of 128 KiB stay in the processor's cache."""

Words = NDArray[np.uint64]


class FeatureHash(nn.Module):
    """S, the linear map from the update of one victim to `buckets` numbers, for U updates at once.

    It is a constant linear map: exact under autograd of any order and `torch.func.{grad, jvp, vjp, vmap}`. It works in
    the type of what it is given, on the device that it was moved to. The map costs 8 bytes for each coordinate, is
    built in half a second for ten million (loading it would take as long), and is shared by equal instances of a
    process. It is not part of the `state_dict`, because the arguments say it all. On a CPU, sums are taken in a fixed
    order; on a GPU, a call and `rows` sum by atomic operations, whose last digits vary, and `columns` does not.

    The sign is folded into the index: positive and negative coordinates are summed into 2 K slots, and the halves are
    subtracted. That spares one product and one copy of the update, which cost more than the sums.

    Args:
        shapes: parameter name -> shape of its tensor in one update, without the update axis; their order is the order
            of the coordinates in `rows`, `columns` and `transposed`, and changes nothing else.
        buckets: K, at least 1.
        seed: of the map.
        signed: with False, s = +1 everywhere on the same buckets: plain sums as in Learning to Invert (Wu et al., UAI
            2023), whose code draws its buckets from a random generator instead of a hash. Inner products are then
            biased by the sum over i != j of x_i y_j / K.

    Raises:
        ConfigurationError: no coordinates, or fewer than one bucket.
        ShapeError: on use, what is passed does not fit `shapes` or K.
    """

    index: Tensor

    def __init__(
        self, *, shapes: Mapping[str, torch.Size | tuple[int, ...]], buckets: int, seed: int, signed: bool = True
    ) -> None:
        super().__init__()
        if buckets < 1:
            raise ConfigurationError(f"buckets is {buckets}; hash into at least 1, better a few times the unknowns.")
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        self.coordinates = sum(shape.numel() for shape in self.shapes.values())
        if not self.coordinates:
            raise ConfigurationError("there is nothing to hash: pass the shapes of at least one parameter.")
        self.buckets, self.seed, self.signed = buckets, seed, signed
        sizes = tuple((name, shape.numel()) for name, shape in self.shapes.items())
        self.register_buffer("index", _slots(sizes, buckets, seed, signed), persistent=False)
        self._sorted: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, update: Mapping[str, Tensor]) -> Tensor:
        """S g of each update: name -> (U, *shape), in any order of the names; returns (U, K).

        Raises:
            ShapeError: names are missing or unknown, or a tensor is not (U, *shape).
        """
        if update.keys() != self.shapes.keys():
            missing, unknown = self.shapes.keys() - update.keys(), update.keys() - self.shapes.keys()
            faults = [f"{word} {sorted(names)}" for word, names in (("lacks", missing), ("adds", unknown)) if names]
            raise ShapeError(
                f"the update {' and '.join(faults)}; hash updates of the victim that the map was made for."
            )
        updates = update[next(iter(self.shapes))].shape[:1]
        for name, shape in self.shapes.items():
            if not updates or update[name].shape != updates + shape:
                raise ShapeError(
                    f"the update of {name!r} has shape {tuple(update[name].shape)}; pass (U, *{tuple(shape)}), the "
                    "same U for every name."
                )
        parts = [update[name].reshape(*updates, shape.numel()) for name, shape in self.shapes.items()]
        return self.rows(torch.cat(parts, dim=1))

    def rows(self, matrix: Tensor) -> Tensor:
        """S m for each row m of `matrix` (k, P), its coordinates in the order of `shapes`; returns (k, K)."""
        self._check(matrix, axis=1, size=self.coordinates)
        # In place is safe under vmap, jvp and grad, because new_zeros follows the matrix into all three.
        slots = self.buckets * (2 if self.signed else 1)
        sums = matrix.new_zeros(len(matrix), slots).scatter_add_(1, self.index.expand(matrix.shape), matrix)
        return sums[:, : self.buckets] - sums[:, self.buckets :] if self.signed else sums

    def columns(self, matrix: Tensor) -> Tensor:
        """S m for each column m of `matrix` (P, k); returns (K, k).

        Two to three times faster than `rows` from about a hundred columns on, where the memory lies this way (each row
        contiguous); a matrix that must be transposed first, or has few columns, is better given to `rows`. Plain
        autograd works, `vmap` does not.
        """
        self._check(matrix, axis=0, size=self.coordinates)
        order, starts, signs = self._by_bucket()
        return F.embedding_bag(order, matrix, starts, mode="sum", per_sample_weights=signs.to(matrix.dtype))

    def transposed(self, hashed: Tensor) -> Tensor:
        """S^T z for each row z of `hashed` (k, K), which takes derivatives back to the update; returns (k, P)."""
        self._check(hashed, axis=1, size=self.buckets)
        return (torch.cat([hashed, -hashed], dim=1) if self.signed else hashed).index_select(1, self.index)

    def occupancy(self) -> Tensor:
        """How many coordinates each bucket sums, (K,), int64.

        Independent noise of standard deviation sigma on every coordinate has sigma * sqrt(occupancy) in the buckets.
        """
        return torch.bincount(self.index % self.buckets, minlength=self.buckets)

    def _by_bucket(self) -> tuple[Tensor, Tensor, Tensor]:
        """The coordinates sorted by bucket, where each bucket starts among them, and their signs; made when needed."""
        if self._sorted is None or self._sorted[0].device != self.index.device:
            places, negative = self.index % self.buckets, self.index // self.buckets
            places, order = places.sort(stable=True)
            starts = torch.searchsorted(places, torch.arange(self.buckets, device=places.device))
            self._sorted = order, starts, (1 - 2 * negative[order]).to(torch.int8)
        return self._sorted

    def _check(self, matrix: Tensor, *, axis: int, size: int) -> None:
        if matrix.ndim != 2 or matrix.shape[axis] != size:
            form = f"(k, {size})" if axis else f"({size}, k)"
            raise ShapeError(f"the matrix has shape {tuple(matrix.shape)}; pass {form}.")


@lru_cache(maxsize=4)
def _slots(sizes: tuple[tuple[str, int], ...], buckets: int, seed: int, signed: bool) -> Tensor:
    """The slot of each coordinate, (P,), int64: its bucket, plus K where its sign is negative."""
    slots = np.empty(sum(size for _, size in sizes), dtype=np.int64)
    place = 0
    for name, size in sizes:
        key = mmh3.mmh3_x64_128_utupledigest(f"{seed}\x1f{name}".encode(), 0)[0]
        for start in range(0, size, _AT_ONCE):
            stop = min(start + _AT_ONCE, size)
            words = _murmur(key, np.arange(start, stop, dtype=np.uint64))
            found = (words >> np.uint64(1)) % np.uint64(buckets)
            if signed:
                found += (words & np.uint64(1)) * np.uint64(buckets)
            slots[place + start : place + stop] = found
        place += size
    return torch.from_numpy(slots)


_MASK = (1 << 64) - 1
_C1, _C2 = 0x87C37B91114253D5, 0x4CF5AD432745937F


def _murmur(key: int, index: Words) -> Words:
    """MurmurHash3_x64_128, seed 0, first word, of the 16 bytes (key, index): its one block, for an array of indices.

    The package hashes one string a call, too slow for millions. This is Appleby's algorithm (public domain), and the
    tests hold it to the package's.
    """
    first = _rotated_left(key * _C1 & _MASK, 31) * _C2 & _MASK
    first = (_rotated_left(first, 27) * 5 + 0x52DCE729) & _MASK
    second = index * np.uint64(_C2)
    second = (second << np.uint64(33) | second >> np.uint64(31)) * np.uint64(_C1)
    second = second << np.uint64(31) | second >> np.uint64(33)
    second = (second + np.uint64(first)) * np.uint64(5) + np.uint64(0x38495AB5)
    second ^= np.uint64(16)  # the length
    one = second + np.uint64(first ^ 16)
    two = second + one
    return _mixed(one) + _mixed(two)


def _mixed(words: Words) -> Words:
    """The finalizer fmix64, in place."""
    words ^= words >> np.uint64(33)
    words *= np.uint64(0xFF51AFD7ED558CCD)
    words ^= words >> np.uint64(33)
    words *= np.uint64(0xC4CEB9FE1A85EC53)
    words ^= words >> np.uint64(33)
    return words


def _rotated_left(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & _MASK
