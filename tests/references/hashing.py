"""Feature hashing one coordinate at a time, by the package's own MurmurHash3 and by a dense matrix."""

import math
import struct
from collections.abc import Mapping

import mmh3
import torch
from torch import Tensor


def coordinate(name: str, index: int, *, buckets: int, seed: int) -> tuple[int, int]:
    """The bucket and the sign of one coordinate."""
    (key,) = struct.unpack_from("<Q", mmh3.mmh3_x64_128_digest(str(seed).encode() + b"\x1f" + name.encode(), 0))
    (word,) = struct.unpack_from("<Q", mmh3.mmh3_x64_128_digest(struct.pack("<QQ", key, index), 0))
    return (word >> 1) % buckets, -1 if word & 1 else 1


def matrix(shapes: Mapping[str, tuple[int, ...]], *, buckets: int, seed: int, signed: bool = True) -> Tensor:
    """S, (K, P), float64."""
    columns = []
    for name, shape in shapes.items():
        for index in range(math.prod(shape)):
            bucket, sign = coordinate(name, index, buckets=buckets, seed=seed)
            column = torch.zeros(buckets, dtype=torch.float64)
            column[bucket] = sign if signed else 1
            columns.append(column)
    return torch.stack(columns, dim=1)
