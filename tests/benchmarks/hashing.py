"""How fast are updates hashed? Every way of summing in one process, in turns, as medians; and the building of the map.

    python tests/benchmarks/hashing.py --json hashing.json

The matrices have one direction a row, as Jacobian products come, or a column. A ratio above 1 says how many times
longer the other way takes. Each way gives the same sums, which is checked first.
"""

import argparse
import struct
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import mmh3
import torch
from common import VICTIMS, seconds, write
from torch import Tensor
from torch.nn import functional as F

from gibench.allocator import keep_large_blocks
from gibench.hashing import FeatureHash, _slots

CASES = {  # victim -> directions k
    "lenet": (1, 128, 512),
    "resnet20": (1, 128),
    "resnet18": (1, 4),
}
SAMPLE = 200_000  # coordinates hashed one by one


def build(victim: str, buckets: int, rounds: int) -> dict[str, float]:
    """Seconds to build the map, and what one call of the package per coordinate would take."""
    shapes = {name: parameter.shape for name, parameter in VICTIMS[victim]().named_parameters()}
    times = []
    for seed in range(rounds):
        times.append(seconds(lambda seed=seed: FeatureHash(shapes=shapes, buckets=buckets, seed=seed)))  # type: ignore[misc]
        _slots.cache_clear()
    coordinates = sum(shape.numel() for shape in shapes.values())

    def one_by_one() -> None:
        for index in range(SAMPLE):
            mmh3.mmh3_x64_128_utupledigest(struct.pack("<QQ", 0, index), 0)

    single = seconds(one_by_one) / SAMPLE * coordinates
    return {
        "coordinates": coordinates,
        "seconds": median(times),
        "one_by_one_seconds": single,
        "ratio": single / median(times),
    }


def ways(hashing: FeatureHash, rows: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Each returns the sums, (k, K)."""
    buckets = hashing.buckets
    place = hashing.index % buckets
    sign = 1.0 - 2.0 * (hashing.index // buckets).to(rows.dtype)
    order = place.argsort(stable=True)
    edges = torch.searchsorted(place[order], torch.arange(buckets + 1))
    signs, columns = sign[order], rows.T.contiguous()
    sparse = torch.sparse_csr_tensor(edges, order, signs, (buckets, len(place)), check_invariants=True)

    def row_by_row() -> Tensor:
        return torch.stack([row.new_zeros(buckets).index_add(0, place, row * sign) for row in rows])

    def transposed_index_add() -> Tensor:
        return rows.new_zeros(buckets, len(rows)).index_add(0, place, (rows * sign).T.contiguous()).T

    def bag(matrix: Tensor) -> Tensor:
        return F.embedding_bag(order, matrix, edges[:-1], mode="sum", per_sample_weights=signs).T

    return {
        "rows": lambda: hashing.rows(rows),
        "rows: index_add, one by one": row_by_row,
        "rows: index_add, transposed": transposed_index_add,
        "rows: embedding_bag, transposed": lambda: bag(rows.T.contiguous()),
        "rows: sparse product": lambda: (sparse @ rows.T).T,
        "columns": lambda: hashing.columns(columns).T,
        "columns: index_add": lambda: (
            columns.new_zeros(buckets, len(rows)).index_add(0, place, columns * sign[:, None]).T
        ),
        "columns: sparse product": lambda: (sparse @ columns).T,
    }


def measure(hashing: FeatureHash, directions: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Median seconds of each way, and the ratios to ours for the same layout."""
    source = torch.Generator().manual_seed(0)
    rows = torch.randn(directions, hashing.coordinates, generator=source, dtype=dtype)
    table = ways(hashing, rows)
    expected = table["rows"]()
    for name, way in table.items():
        torch.testing.assert_close(way(), expected, rtol=1e-3, atol=1e-2, msg=f"{name} gives other sums")
    turns: dict[str, list[float]] = {name: [] for name in table}
    for _ in range(rounds):
        for name, way in table.items():
            turns[name].append(seconds(way))
    times = {name: median(values) for name, values in turns.items()}
    ratios = {
        name: median([other / own for other, own in zip(turns[name], turns[name.split(":")[0]], strict=True)])
        for name in table
        if ":" in name
    }
    return {"directions": directions, "type": str(dtype), "seconds": times, "ratios": ratios}


def main() -> None:
    """Measure the chosen victims and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--victims", nargs="+", choices=[*CASES], default=[*CASES], metavar="NAME")
    parser.add_argument("--buckets", type=int, default=6144, help="K (6144, twice the pixels of a CIFAR image)")
    parser.add_argument("--threads", type=int, help="of PyTorch; all cores by default")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (5)")
    parser.add_argument("--double", action="store_true", help="in float64")
    settings = parser.parse_args()
    keep_large_blocks()  # as the command line does, for all ways
    if settings.threads:
        torch.set_num_threads(settings.threads)
    entries: dict[str, Any] = {}
    for victim in settings.victims:
        made = build(victim, settings.buckets, settings.rounds)
        print(f"{victim}: {made['coordinates']:,} coordinates, map in {made['seconds']:.3f} s, x {made['ratio']:.0f}")
        shapes = {name: parameter.shape for name, parameter in VICTIMS[victim]().named_parameters()}
        hashing = FeatureHash(shapes=shapes, buckets=settings.buckets, seed=0)
        entries[victim] = {"build": made, "sums": []}
        for directions in CASES[victim]:
            dtype = torch.float64 if settings.double else torch.float32
            entry = measure(hashing, directions, dtype, settings.rounds)
            entries[victim]["sums"].append(entry)
            for name, took in entry["seconds"].items():
                ratio = f"x {entry['ratios'][name]:.2f}" if name in entry["ratios"] else ""
                print(f"  k = {directions:<4} {name:<34} {1000 * took:9.2f} ms  {ratio}", flush=True)
    write(settings.json, {"buckets": settings.buckets, "victims": entries})


if __name__ == "__main__":
    main()
