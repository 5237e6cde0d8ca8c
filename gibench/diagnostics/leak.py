"""What the doctor says of a configuration before any attack: directions without a trace, condition, least errors."""

from collections.abc import Iterator, Mapping
from itertools import islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gibench.clients import Client
from gibench.data import ImageDataModule
from gibench.diagnostics.identifiability import Identifiability, identifiability, in_double
from gibench.diagnostics.layer_rank import rank_deficiency
from gibench.errors import ConfigurationError, RefusalError
from gibench.types import Batch

NOTE = (
    "This looks at the private images: an audit of one's own data, which no attack sees. It is local, for small "
    "changes at these images and weights. The PSNR of the least expected MSE, with a "
    "prior, takes pixels for independent, with the variance of U(0, 1), and the network for linear there; a mean of "
    "PSNRs may exceed it."
)


def print_leak(scenarios: Mapping[str, tuple[ImageDataModule, Client]], *, updates: int, console: Console) -> None:
    """Diagnose the first updates of each scenario and print what they discard.

    Args:
        scenarios: name -> where its private batches come from, and what its client does.
        updates: of each scenario.
        console: where to.

    Raises:
        ConfigurationError: `updates` is not positive.
        GibenchError: data or weights are not there, or the client does not fit them.
    """
    if updates < 1:
        raise ConfigurationError(f"--updates is {updates}; look at 1 or more.")
    for name, (data, client) in scenarios.items():
        console.print(Text(f"\n{name}", "bold"))
        console.print(f"{client.victim.architecture}, {type(client).__name__}, float64", style="dim")
        double = in_double(client)
        for batch in first_updates(data, updates):
            try:
                found = identifiability(double, batch, scenario=name)
            except RefusalError as refusal:
                console.print(f"not served: {refusal}", style="yellow", markup=False)
                break
            _print_update(found, console)
            console.print(layers_in_words(double, batch), markup=False)
    console.print(f"\n{NOTE}", style="dim", markup=False)


def first_updates(data: ImageDataModule, updates: int) -> Iterator[Batch]:
    """Yield the first updates of a data set, one at a time, however they are grouped and whatever is finished."""
    data.skip(())
    data.share(0, 1)
    return islice(_single(data), updates)


def _single(data: ImageDataModule) -> Iterator[Batch]:
    for group in data.predict_dataloader():
        for row, update_id in enumerate(group.update_ids):
            yield Batch(
                images=group.images[row : row + 1],
                labels=group.labels[row : row + 1],
                image_ids=group.image_ids[row : row + 1],
                update_ids=(update_id,),
            )


def in_words(found: Identifiability) -> list[str]:
    """Say what one update discards, in lines."""
    size, labels = len(found.labels), ", ".join(map(str, found.labels))
    lines = [f"update {found.update_id} (labels {labels})"]
    if found.remark:
        lines.append(f"these numbers are {found.remark}")
    if found.null_directions is None:
        lines.append(
            f"B = {size}: {found.observations:,} x {found.unknowns:,} is too large for all singular values; "
            f"by random probes they reach from {found.largest:.3g} down to {found.smallest:.1g} or less"
        )
    else:
        lines.append(f"B = {size}: {found.null_directions:,} of {found.unknowns:,} directions leave no trace")
        if found.condition is None:
            lines.append("no direction leaves one")
        else:
            gap = f"; a gap of {found.gap:.0e} to rounding errors" if found.gap else ""
            others = "the others" if found.null_directions else "them"
            lines.append(f"condition of {others}: {found.condition:.1e}{gap}")
        lines.append(
            f"without noise, with a prior, the PSNR of the least expected MSE is {found.noise_free_psnr:.1f} dB"
        )
    return lines


def layers_in_words(client: Client, batch: Batch) -> str:
    """Say what R-GAP's equations leave open, layer by layer, where they serve the victim."""
    if batch.images.shape[1] > 1:
        return "R-GAP, layer by layer: for one image per update only"
    if client.threat_model.update != "gradient":
        return "R-GAP, layer by layer: for one gradient only"
    try:
        layers = rank_deficiency(client.victim, batch.images[0].double(), batch.labels[0])
    except RefusalError as refusal:
        return f"R-GAP, layer by layer: not served ({refusal})"
    each = ", ".join(f"{layer.name} {layer.deficiency:,} of {layer.unknowns:,}" for layer in layers)
    return f"R-GAP, layer by layer, directions of the input left open: {each}"


def _print_update(found: Identifiability, console: Console) -> None:
    for line in in_words(found):
        console.print(line, markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    least = ("PSNR of least MSE, prior", "unbiased")
    for heading in ("noise / RMS", "sigma", "directions above it", *least, "bits"):
        table.add_column(Text(heading, "dim"), justify="right")
    for floor in found.floors:
        share = 100 * floor.directions / found.unknowns
        doubt = f" ± {floor.psnr_error:.1f}" if floor.psnr_error >= 0.05 else ""
        unbiased = "" if floor.psnr_unbiased is None else f"{floor.psnr_unbiased:.1f}"
        cells = (f"{floor.relative:.2g}", f"{floor.sigma:.2g}", f"{floor.directions:,.0f} ({share:.0f} %)")
        table.add_row(*cells, f"{floor.psnr:.1f}{doubt}", unbiased, f"{floor.bits:,.0f}")
    console.print("Gaussian noise of the client's defense:" if found.own_noise else "Gaussian noise, assumed:")
    console.print(table)
    console.print(f"{found.method}, {found.seconds:.1f} s", style="dim")
