"""How much faster than one image at a time? Both in one process, in turns, as medians.

    python tests/benchmarks/engine.py --json engine.json

Each victim gets a process of its own, so that its peak of memory is its own.
"""

import argparse
import gc
import multiprocessing
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import TV, VICTIMS, Ours, ceilings, observe, resident, seconds, write
from peer import OneAtATime
from torch.utils.flop_counter import FlopCounterMode

from gibench.allocator import keep_large_blocks
from gibench.engine import Engine
from gibench.runs.manifest import peak_memory

CASES = {  # victim, B -> updates attacked together, restarts of each
    "lenet, B = 1": ("lenet", 1, 64, 1),
    "mlp, B = 1": ("mlp", 1, 64, 1),
    "mlp, B = 1, 64 restarts": ("mlp", 1, 1, 64),
    "resnet20, B = 1": ("resnet20", 1, 32, 1),
    "resnet18, B = 1": ("resnet18", 1, 16, 1),
    "convnet64, B = 1": ("convnet64", 1, 16, 1),
    "lenet, B = 8": ("lenet", 8, 32, 1),
    "mlp, B = 8": ("mlp", 8, 32, 1),
    "resnet18, B = 8": ("resnet18", 8, 4, 1),
}
PASSES = 8  # forward passes that plain autograd's evaluation is worth: 1 + 1 + 1, and 5 for the double backward


def measure(case: str, settings: argparse.Namespace) -> dict[str, Any]:
    """One entry of the table."""
    keep_large_blocks()  # as the command line does, for both sides
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = torch.device(settings.device)
    name, batch_size, updates, restarts = CASES[case]
    victim = VICTIMS[name]().eval().to(device)
    observation = observe(victim, updates, batch_size)
    model = resident(device)
    ours = Ours(observation, Engine(backend=settings.backend, compile=settings.compile), restarts=restarts)
    ours.run(1)
    peak = peak_memory(device) - model
    peer = one_at_a_time(case, device)
    peer.step()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        victim(torch.rand(batch_size, *victim.image_shape, device=device))
    flops = PASSES * counter.get_total_flops()
    rounds: dict[str, list[float]] = {"ours": [], "peer": []}
    steps = max(1, round(0.7 / seconds(lambda: ours.run(1), device)))
    images = max(1, round(0.7 / seconds(peer.step, device)))
    for _ in range(settings.rounds):
        gc.collect()
        rounds["ours"].append(ours.rows * steps / seconds(lambda: ours.run(steps), device))
        rounds["peer"].append(images / seconds(lambda: [peer.step() for _ in range(images)], device))
    rates = {side: median(values) for side, values in rounds.items()}
    top = ceilings(device)
    return {
        "victim": name,
        "batch_size": batch_size,
        "rows": ours.rows,
        "rows_at_once": ours.at_once,
        "restarts": restarts,
        "rate": rates["ours"],
        "peer_rate": rates["peer"],
        "ratio": median([a / b for a, b in zip(rounds["ours"], rounds["peer"], strict=True)]),
        "backend": str(ours.choice),
        "threads": torch.get_num_threads(),
        "gflops": rates["ours"] * flops / 1e9,
        "share_of_convolution_ceiling": rates["ours"] * flops / 1e9 / top["convolution"],
        "share_of_matrix_product_ceiling": rates["ours"] * flops / 1e9 / top["matrix_product"],
        "peak_memory_gib": peak / 2**30,
    }


def one_at_a_time(case: str, device: torch.device) -> OneAtATime:
    """The other side, on the first update of the case."""
    name, batch_size, *_ = CASES[case]
    victim = VICTIMS[name]().eval().to(device)
    observation = observe(victim, 1, batch_size)
    assert observation.labels is not None
    observed = [observation.update[key][0] for key, _ in victim.named_parameters()]
    start = torch.rand(batch_size, *victim.image_shape, generator=torch.Generator().manual_seed(1)).to(device)
    return OneAtATime(victim.requires_grad_(), observed, observation.labels[0], start, tv=TV)


def main() -> None:
    """Measure the chosen victims and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--victims", nargs="+", choices=[*VICTIMS], default=[*VICTIMS], metavar="NAME")
    parser.add_argument("--threads", type=int, help="of PyTorch; all cores by default")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (5)")
    parser.add_argument("--backend", default="auto", help="force a back end")
    parser.add_argument("--compile", default="off", choices=("off", "auto", "on"))
    parser.add_argument("--device", default="cpu")
    settings = parser.parse_args()
    entries: dict[str, Any] = {}
    context = multiprocessing.get_context("spawn")
    for case in (case for case in CASES if CASES[case][0] in settings.victims):
        with context.Pool(1) as pool:
            entry = entries[case] = pool.apply(measure, (case, settings))
        print(
            f"{case:<26} {entry['rate']:9.1f} /s {entry['peer_rate']:8.1f} /s  x {entry['ratio']:5.2f}  "
            f"{entry['backend']:<18} {entry['gflops']:6.0f} GFLOP/s  {entry['peak_memory_gib']:.2f} GiB",
            flush=True,
        )
    write(settings.json, {"cases": entries})


if __name__ == "__main__":
    main()
