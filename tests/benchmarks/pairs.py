"""Making pairs for inverters: all updates of a step at once, against one image after the other; and a step's parts.

    python tests/benchmarks/pairs.py --json pairs.json --threads 2

The loop is the obvious one: a backward pass for each image, its gradient hashed by `index_add_`. Both make the same
features. `bound` is one backward pass of the whole step, which sums the gradients of its images instead of keeping them
apart, and hashes nothing: no way that keeps them apart is expected to be faster. A training step of MLP-3000 (or
--hidden) is timed with its pairs made anew and without.
"""

import argparse
from pathlib import Path
from statistics import median

import torch
from common import seconds, write
from torch import Tensor
from torch.nn import functional as F

from gibench.allocator import keep_large_blocks
from gibench.clients import FedSGD
from gibench.data import CIFAR10
from gibench.types import ThreatModel
from gibench.victims import Victim, lenet, resnet20
from inverters import MLP, FeatureSettings, InverterTraining, Pairs, UpdateFeatures
from inverters.card import shapes_of
from inverters.pairs import Pair


def main() -> None:
    """Time both, in turns, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--together", type=int, default=256)
    parser.add_argument("--hidden", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    settings = parser.parse_args()
    keep_large_blocks()  # as the program does
    torch.set_num_threads(settings.threads)
    told = {}
    for name, victim, regime in (("lenet", lenet(), "absent"), ("resnet20", resnet20(), "eval")):
        client = FedSGD(victim, threat_model=ThreatModel(victim="initial", batch_norm=regime))  # type: ignore[arg-type]
        coordinates = sum(parameter.numel() for parameter in victim.parameters())
        features = UpdateFeatures(shapes=shapes_of(client), settings=FeatureSettings(buckets=coordinates // 2))
        together = settings.together if name == "lenet" else settings.together // 8
        pairs = Pairs(clients=[client], data=CIFAR10(), features=features, together=together, images=4 * together)
        batch, _, _ = next(iter(pairs.train_dataloader()))
        rounds = []
        for _ in range(settings.rounds):
            found: dict[str, Tensor] = {}
            at_once = seconds(lambda: found.update(ours=pairs.raw(batch, 0)))  # noqa: B023 - called at once
            loop = seconds(lambda: found.update(loop=one_by_one(victim, features, batch.images, batch.labels)))  # noqa: B023
            torch.testing.assert_close(found["ours"][:, 0], found["loop"], rtol=1e-3, atol=1e-4)
            sums = seconds(lambda: summed(victim, batch.images, batch.labels))  # noqa: B023
            rounds.append({"at_once": at_once, "loop": loop, "ratio": loop / at_once, "bound": loop / sums})
        ratio, bound = (median(each[key] for each in rounds) for key in ("ratio", "bound"))
        told[name] = {"updates": together, "ratio": ratio, "bound": bound, "rounds": rounds}
        print(f"{name}: {ratio:.1f} times the pairs of a loop (bound {bound:.1f}), median of {len(rounds)}", flush=True)
    told["step"] = step(settings)
    write(settings.json, told)


def one_by_one(victim: Victim, features: UpdateFeatures, images: Tensor, labels: Tensor) -> Tensor:
    """The hashed gradients of U updates of one image, one backward pass after the other."""
    victim = victim.eval()
    index = features.hashes[0].index
    buckets = features.hashes[0].buckets
    rows = []
    for image, label in zip(images, labels, strict=True):
        victim.zero_grad()
        F.cross_entropy(victim(image), label).backward()
        flat = torch.cat([parameter.grad.flatten() for parameter in victim.parameters()])  # type: ignore[union-attr]
        sums = torch.zeros(2 * buckets).index_add_(0, index, flat)
        rows.append(sums[:buckets] - sums[buckets:])
    return torch.stack(rows)


def summed(victim: Victim, images: Tensor, labels: Tensor) -> None:
    """One backward pass of all images."""
    victim.zero_grad()
    F.cross_entropy(victim(images.flatten(0, 1)), labels.flatten(), reduction="sum").backward()


def step(settings: argparse.Namespace) -> dict[str, float]:
    """The share of a training step that is the network's own, and images inverted per second."""
    client = FedSGD(lenet())
    features = UpdateFeatures(shapes=shapes_of(client), settings=FeatureSettings(buckets=None))
    together = settings.together
    pairs = Pairs(clients=[client], data=CIFAR10(), features=features, together=together, images=4 * together)
    network = MLP(tokens=1, width=features.width, image_shape=(3, 32, 32), slots=1, hidden=settings.hidden)
    training = InverterTraining(network)
    optimizer = torch.optim.Adam(network.parameters())
    loader = pairs.train_dataloader()
    step = next(iter(loader))

    def learn(pair: Pair) -> None:
        optimizer.zero_grad()
        training._loss(pair)[0].backward()
        optimizer.step()

    made = pairs.on_after_batch_transfer(step, 0)
    learn(made)
    owns, wholes = [], []
    for _ in range(settings.rounds):  # in turns, so that whatever else the machine does falls on both
        owns.append(seconds(lambda: learn(made)))
        wholes.append(seconds(lambda: learn(pairs.on_after_batch_transfer(next(iter(loader)), 0))))
    share = median(owns) / median(wholes)
    with torch.no_grad():
        inverted = together / median(seconds(lambda: network(made.features)) for _ in range(settings.rounds))
    print(f"MLP-{settings.hidden}: {100 * share:.0f} % of a step is the network's own; {inverted:.0f} images/s")
    return {"hidden": settings.hidden, "own_share": share, "images_per_second": inverted}


if __name__ == "__main__":
    main()
