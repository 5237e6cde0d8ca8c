"""Diagnose the first updates of a scenario into its run folder, resumably, before any of them is attacked."""

from pathlib import Path

from rich.console import Console

from gibench.defenses import GaussianNoise
from gibench.diagnostics import (
    EstimatedSpectrum,
    Jacobian,
    Spectrum,
    first_updates,
    identifiability,
    in_double,
    read_identifiability,
    write_identifiability,
)
from gibench.diagnostics.spectrum import spectrum_of
from gibench.errors import RefusalError
from gibench.runs.configuration import digest
from gibench.runs.plan import Job
from gibench.types import Batch

FILE = "identifiability.jsonl"


class Spectra:
    """Singular values of the updates of one run: scenarios that differ in their Gaussian noise alone share them.

    Noise that is added to an update moves it, not its derivative. What the derivative does depend on names it: data,
    victim, protocol, update; and any other defense, because it may.
    """

    def __init__(self) -> None:
        self._found: dict[str, Spectrum | EstimatedSpectrum] = {}

    def __call__(self, job: Job, batch: Batch, jacobian: Jacobian) -> Spectrum | EstimatedSpectrum:
        """Return the singular values of an update of a job, computed once."""
        key = digest([_without_noise(job), job.victim, batch.update_ids, batch.labels.tolist()])
        if key not in self._found:
            self._found[key] = spectrum_of(jacobian)
        return self._found[key]


def _without_noise(job: Job) -> list[object]:
    """Return the data and the client of a job, without a defense that only adds Gaussian noise."""
    data, client = job.identity["data"], job.identity["client"]
    if isinstance(job.client.defense, GaussianNoise | None):
        known = client.get("init_args") or {}
        threat = {name: flag for name, flag in (known.get("threat_model") or {}).items() if "defense" not in name}
        client = client | {"init_args": known | {"defense": None, "threat_model": threat}}
    return [data, client]


def diagnose(folder: Path, job: Job, *, updates: int, spectra: Spectra, console: Console) -> None:
    """Add to `identifiability.jsonl` what the first updates of a job's scenario discard, where it is not there yet.

    Args:
        folder: of the run.
        job: gives the scenario, its data and its client.
        updates: how many; 0 does nothing.
        spectra: of the run, so that no singular values are computed twice.
        console: is told of a victim that cannot be served.

    Raises:
        RecordError: the file is damaged.
    """
    if not updates:
        return
    found = read_identifiability(folder / FILE)
    done = {record.update_id for record in found if record.scenario == job.scenario}
    client = in_double(job.client)
    for batch in first_updates(job.data, updates):
        if batch.update_ids[0] in done:
            continue
        try:
            found.append(
                identifiability(
                    client,
                    batch,
                    scenario=job.scenario,
                    spectrum=lambda jacobian, batch=batch: spectra(job, batch, jacobian),  # type: ignore[misc]
                )
            )
        except RefusalError as refusal:
            console.print(f"{job.scenario} is not diagnosed: {refusal}", soft_wrap=True, markup=False)
            return
        write_identifiability(found, folder / FILE)
