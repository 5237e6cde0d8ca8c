"""Searching a generator: U updates from R restarts each as one batch, against one restart after the other.

    python tests/benchmarks/generative.py --json generative.json --threads 2

LeNet, one image, GIAS: steps over the latent of a generator, then over its weights. The loop is the obvious one: plain
autograd, PyTorch's Adam, a copy of the generator for each restart. Both find the same images, to --tolerance.
"""

import argparse
from pathlib import Path
from statistics import median

import torch
from common import seconds, write
from references import gias as reference
from torch import Tensor

from generators import DCGAN, VAEDecoder
from gibench.attacks import gias
from gibench.clients import FedSGD
from gibench.search import Generator
from gibench.seeding import derive, normal_rows
from gibench.types import Batch, Observation, ThreatModel
from gibench.victims import lenet

GENERATORS = {"dcgan": lambda: DCGAN(width=16), "vae": lambda: VAEDecoder(widths=(16, 32, 128, 256))}


def main() -> None:
    """Time both, in turns, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--generators", nargs="+", default=list(GENERATORS), choices=list(GENERATORS))
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--latent", type=int, default=40, help="steps")
    parser.add_argument("--weights", type=int, default=0, help="steps")
    parser.add_argument("--alone", type=int, default=4, help="restarts that the loop does")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    told = {name: compare(GENERATORS[name]().eval(), settings) for name in settings.generators}
    for name, found in told.items():
        print(f"{name}: {found['ratio']:.1f} times the restarts per second of a loop", flush=True)
    write(settings.json, told)


def compare(generator: Generator, settings: argparse.Namespace) -> dict[str, object]:
    """Seconds for a restart of an update, together and alone, and their ratio."""
    observation = observe(generator, settings.updates)
    attack = gias(
        generator=generator,
        latent_steps=settings.latent,
        weight_steps=settings.weights,
        restarts=settings.restarts,
        tv=0.0,
    )
    rounds = []
    for _ in range(settings.rounds):
        found: dict[str, Tensor | None] = {}
        each = seconds(lambda: found.update(images=attack(observation).candidates))  # noqa: B023 - called at once
        images = found["images"]
        assert images is not None
        alone, apart = [], 0.0
        for number in range(settings.alone):
            place = number % settings.updates, number % settings.restarts
            one: dict[str, Tensor] = {}
            alone.append(seconds(lambda: one.update(image=by_itself(generator, observation, *place, settings))))  # noqa: B023
            apart = max(apart, float((images[place[1], place[0]] - one["image"]).abs().max()))
        if apart > settings.tolerance:
            raise SystemExit(f"the two differ by {apart:.2g}, more than {settings.tolerance:.2g}.")
        each /= settings.updates * settings.restarts
        rounds.append({"together": each, "alone": sum(alone) / len(alone), "apart": apart})
    ratio = median(row["alone"] / row["together"] for row in rounds)
    return {"ratio": ratio, "rows": settings.updates * settings.restarts, "rounds": rounds}


def observe(generator: Generator, updates: int) -> Observation:
    """Updates of images that the generator draws."""
    with torch.no_grad():
        images = generator(torch.randn(updates, *generator.latent_shape, generator=torch.Generator().manual_seed(0)))
    names = [str(update) for update in range(updates)]
    batch = Batch(
        images=images[:, None],
        labels=torch.arange(updates)[:, None] % 10,
        image_ids=tuple((name,) for name in names),
        update_ids=tuple(names),
    )
    return FedSGD(lenet(), threat_model=ThreatModel(victim="initial", batch_norm="absent"))(batch)


def by_itself(
    generator: Generator, observation: Observation, update: int, restart: int, settings: argparse.Namespace
) -> Tensor:
    """What the loop finds."""
    seed = derive(observation.seeds[update], "restart", restart)
    latent = normal_rows((1, *generator.latent_shape), [seed], "latent").float()[0]
    assert observation.labels is not None
    images, _, _ = reference.attack(
        generator,
        latent,
        observation.labels[update],
        observation.victim,  # type: ignore[arg-type]
        {name: value[update] for name, value in observation.update.items()},
        steps=(settings.latent, settings.weights),
        rates=(0.03, 1e-3),
    )
    return images


if __name__ == "__main__":
    main()
