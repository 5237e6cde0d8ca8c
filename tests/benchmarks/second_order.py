"""One LeNet image by Levenberg-Marquardt: ours against a dense search written plainly, in turns.

    python tests/benchmarks/second_order.py --json second_order.json --threads 2

The plain one holds the Jacobian in float64, by forward derivatives of 512 pixels at once, multiplies it with itself at
each step and factors the result for each damping. Both start at the same points and stop at the same relative value.
"""

import argparse
from pathlib import Path
from statistics import median

import torch
from common import seconds, write
from torch import Tensor
from torch.func import jvp, vmap

from gibench.allocator import keep_large_blocks
from gibench.attacks import second_order
from gibench.clients import FedSGD
from gibench.data import CIFAR10
from gibench.metrics import psnr
from gibench.search import LevenbergMarquardt
from gibench.types import Observation
from gibench.victims import lenet

SOLVED = 1e-14  # of the value at the start


def main() -> None:
    """Run both on some images and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--initialization", choices=("uniform", "default"), default="uniform")
    settings = parser.parse_args()
    keep_large_blocks()
    torch.set_num_threads(settings.threads)
    batch = next(iter(CIFAR10(updates=settings.images, together=settings.images).predict_dataloader()))
    batch = batch.to(torch.float64)
    observation = FedSGD(lenet(initialization=settings.initialization)).double()(batch)
    rounds = []
    for row in range(settings.images):
        one, truth = observation.select([row]), batch.images[row]
        attack = second_order()
        objective, start = attack.problem(one, attack.posterior(one).rows)
        attack.search = LevenbergMarquardt(target=SOLVED * float(objective(start).value))
        found: dict[str, Tensor] = {}
        took = {
            "ours": seconds(lambda attack=attack, one=one, found=found: found.update(ours=attack(one).images[0])),
            "dense": seconds(lambda one=one, start=start, found=found: found.update(dense=dense(one, start["pixels"]))),
        }
        quality = {name: psnr(images, truth).item() for name, images in found.items()}
        rounds.append({"seconds": took, "psnr": quality, "ratio": took["dense"] / took["ours"]})
        print(rounds[-1], flush=True)
    ratio = median(each["ratio"] for each in rounds)  # type: ignore[type-var]
    print(f"median of {len(rounds)}: {ratio:.1f} times as fast")
    write(settings.json, {"initialization": settings.initialization, "rounds": rounds, "ratio": ratio})


def dense(observation: Observation, start: Tensor) -> Tensor:
    """The plain search of one image, from (1, 1, C, H, W); return (1, C, H, W)."""
    observed = torch.cat([value.flatten() for value in observation.update.values()])
    labels = observation.labels

    def residual(point: Tensor) -> Tensor:
        update = observation.simulate(point.view(start.shape), labels)
        return torch.cat([value.flatten() for value in update.values()]) - observed

    point, damping = start.flatten(), 1e-2
    r = residual(point)
    first = value = float(r @ r)
    with torch.no_grad():
        while value > SOLVED * first and damping < 1e12:
            columns = torch.cat(
                [
                    vmap(lambda d, point=point: jvp(residual, (point,), (d,))[1])(part)
                    for part in torch.eye(len(point), dtype=point.dtype).split(512)
                ]
            )
            matrix, slope = columns @ columns.T, columns @ r
            scale = matrix.diagonal().mean()
            for _ in range(20):
                damped = matrix + damping * scale * torch.eye(len(point), dtype=point.dtype)
                target = point - torch.cholesky_solve(slope[:, None], torch.linalg.cholesky(damped))[:, 0]
                rest = residual(target)
                if float(rest @ rest) < value:
                    point, r, value, damping = target, rest, float(rest @ rest), max(0.2 * damping, 1e-15)
                    break
                damping *= 4
    return point.clamp(0, 1).view(start.shape[1:])


if __name__ == "__main__":
    main()
