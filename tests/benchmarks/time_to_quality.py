"""How long until 100 images are as good as the published setting of Inverting Gradients makes them?

    python tests/benchmarks/time_to_quality.py --json time_to_quality.json

The published setting is 24,000 steps on LeNet, unsigned, from one start. Ours runs it on all images together, and then
ever longer schedules of fewer steps, of which the first counts whose mean PSNR comes within 0.1 dB. The one-at-a-time
loop takes the same steps for the same answer; its time is extrapolated from its rate, which is measured.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import TV, seconds, write
from peer import OneAtATime

from gibench.allocator import keep_large_blocks
from gibench.attacks import inverting_gradients
from gibench.clients import FedSGD
from gibench.data import CIFAR10
from gibench.metrics import psnr
from gibench.search import Adam
from gibench.types import Observation
from gibench.victims import lenet

PUBLISHED = 24_000
SHORTER = (600, 1_200, 2_400, 4_800, 9_600)
NEAR = 0.1  # dB


def main() -> None:
    """Run the schedules and print what they reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--steps", type=int, default=PUBLISHED, help="of the published setting (24,000)")
    settings = parser.parse_args()
    keep_large_blocks()
    data = CIFAR10(updates=settings.images, together=settings.images)
    batch = next(iter(data.predict_dataloader()))
    observation = FedSGD(lenet())(batch)
    attack = inverting_gradients(steps=settings.steps, tv=TV, signed=False)

    def run(steps: int) -> dict[str, Any]:
        attack.search = Adam(steps=steps)  # what the engine has measured and compiled for the first run stays
        begin = time.perf_counter()
        found = attack(observation)
        took = time.perf_counter() - begin
        quality = psnr(found.images.flatten(0, 1), batch.images.flatten(0, 1)).mean().item()
        print(f"{steps} steps: {quality:.2f} dB after {took:.1f} s ({attack.engine.choice})", flush=True)
        return {"steps": steps, "psnr": quality, "seconds": took, "backend": str(attack.engine.choice)}

    published = run(settings.steps)
    runs = [published]
    for steps in (count for count in SHORTER if count < settings.steps):
        runs.append(run(steps))
        if runs[-1]["psnr"] >= published["psnr"] - NEAR:
            break
    enough = next((run for run in runs[1:] if run["psnr"] >= published["psnr"] - NEAR), published)
    rate = peer_rate(observation)
    result = {
        "images": settings.images,
        "runs": runs,
        "reached": enough,
        "peer_rate": rate,
        "peer_seconds_extrapolated": enough["steps"] * settings.images / rate,
        "peer_seconds_published_extrapolated": settings.steps * settings.images / rate,
    }
    alone, published_alone = result["peer_seconds_extrapolated"], result["peer_seconds_published_extrapolated"]
    print(f"within {NEAR} dB of the published setting: {enough['seconds']:.1f} s for {enough['steps']} steps")
    print(
        f"one at a time, extrapolated from {rate:.0f} steps a second: {alone:.0f} s; published {published_alone:.0f} s"
    )
    write(settings.json, result)


def peer_rate(observation: Observation) -> float:
    """Steps a second of the one-at-a-time loop on the first update."""
    victim = lenet().eval()
    assert observation.labels is not None
    observed = [observation.update[name][0] for name, _ in victim.named_parameters()]
    start = torch.rand(1, *victim.image_shape, generator=torch.Generator().manual_seed(0))
    peer = OneAtATime(victim, observed, observation.labels[0], start, tv=TV)
    peer.step()
    return median([300 / seconds(lambda: [peer.step() for _ in range(300)]) for _ in range(5)])


if __name__ == "__main__":
    main()
