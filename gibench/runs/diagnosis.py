"""Diagnose the first updates of a scenario into its run folder, resumably, before any of them is attacked."""

from pathlib import Path

from rich.console import Console

from gibench.diagnostics import (
    first_updates,
    identifiability,
    in_double,
    read_identifiability,
    write_identifiability,
)
from gibench.errors import RefusalError
from gibench.runs.plan import Job

FILE = "identifiability.jsonl"


def diagnose(folder: Path, job: Job, *, updates: int, console: Console) -> None:
    """Add to `identifiability.jsonl` what the first updates of a job's scenario discard, where it is not there yet.

    Args:
        folder: of the run.
        job: gives the scenario, its data and its client.
        updates: how many; 0 does nothing.
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
            found.append(identifiability(client, batch, scenario=job.scenario))
        except RefusalError as refusal:
            console.print(f"{job.scenario} is not diagnosed: {refusal}", soft_wrap=True, markup=False)
            return
        write_identifiability(found, folder / FILE)
