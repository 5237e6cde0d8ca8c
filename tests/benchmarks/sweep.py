"""How does the rate depend on the number of updates attacked together, and on the images behind each?

    python tests/benchmarks/sweep.py --json sweep.json --svg sweep.svg

One process for each victim and batch size; each point is the best of three calls of the objective with the back end
that the engine chooses for so many updates.
"""

import argparse
import multiprocessing
import re
from pathlib import Path
from typing import Any

import torch
from common import VICTIMS, Ours, observe, seconds, write

from gibench.allocator import keep_large_blocks
from gibench.engine import Engine
from gibench.report.charts import Curve, curves, decades

BATCH_SIZES = (1, 2, 4, 8)
UPDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LONGEST = 6.0  # seconds of one evaluation of all rows: from here on a victim is not tried with more updates
COLORS = ("#1f5fa8", "#b3441c", "#2f7d4f", "#7a4fa3", "#8a6d00", "#5b6470")


def measure(name: str, batch_size: int, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """The points of one curve."""
    keep_large_blocks()
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    points: list[dict[str, Any]] = []
    for updates in (count for count in UPDATES if count <= settings.most):
        ours = Ours(observe(VICTIMS[name]().eval(), updates, batch_size), Engine(compile="off"))
        took = [seconds(lambda ours=ours: [objective(start) for objective, start in ours.parts]) for _ in range(4)]  # type: ignore[misc]
        best = min(took[1:])
        points.append({"updates": updates, "rate": updates / best, "backend": str(ours.choice), "chunk": ours.at_once})
        if best > LONGEST / 2:
            break
    return points


def draw(curves_of: dict[str, list[dict[str, Any]]]) -> str:
    """A drawing that stands alone: rate over log2 of the number of updates."""
    lines, style, legend = (
        [],
        ["text{font:12px sans-serif;fill:#333}.grid{stroke:#ddd}.curve{fill:none;stroke-width:2}"],
        [],
    )
    for number, (name, points) in enumerate(curves_of.items()):
        color = COLORS[number % len(COLORS)]
        places = [(float(point["updates"].bit_length() - 1), point["rate"]) for point in points]
        lines.append(Curve(name, f"line{number}", places))
        style.append(f".line{number}{{stroke:{color}}}")
        legend.append(
            f'<text x="{60 + 190 * (number % 3)}" y="{-8 - 16 * (number // 3)}" style="fill:{color}">{name}</text>'
        )
    rates = [point["rate"] for points in curves_of.values() for point in points]
    svg = curves(
        lines,
        x_label="updates attacked together, power of two",
        y_label="evaluations per second",
        y_ticks=decades(rates),
        log_y=True,
    )
    room = 16 * (1 + (len(lines) - 1) // 3) + 12  # above the drawing, for the legend
    head, rest = str(svg).split(">", 1)
    _, _, width, height = re.search(r'viewBox="(\S+) (\S+) (\S+) (\S+)"', head).groups()  # type: ignore[union-attr]
    box = f'viewBox="0 {-room} {width} {float(height) + room:g}"'
    head = re.sub(r'viewBox="[^"]*"', f'xmlns="http://www.w3.org/2000/svg" {box}', head)
    return f"{head}><style>{''.join(style)}</style>{''.join(legend)}{rest}"


def main() -> None:
    """Measure the chosen curves, print them and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the curves")
    parser.add_argument(
        "--victims", nargs="+", choices=[*VICTIMS], default=["lenet", "mlp", "resnet20"], metavar="NAME"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[*BATCH_SIZES], metavar="B")
    parser.add_argument("--most", type=int, default=UPDATES[-1], metavar="U", help="updates together at most (256)")
    parser.add_argument("--threads", type=int)
    settings = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    context = multiprocessing.get_context("spawn")
    for name in settings.victims:
        for batch_size in settings.batch_sizes:
            with context.Pool(1) as pool:
                points = found[f"{name}, B = {batch_size}"] = pool.apply(measure, (name, batch_size, settings))
            rates = "  ".join(f"{point['updates']}: {point['rate']:.0f}" for point in points)
            print(f"{name}, B = {batch_size}:  {rates}", flush=True)
    write(settings.json, {"curves": found})
    if settings.svg:
        settings.svg.write_text(draw(found))


if __name__ == "__main__":
    main()
