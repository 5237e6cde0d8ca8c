"""Where a result comes from: victim, machine, cost, and all that it takes to run it again."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gibench.precision import Parity
from gibench.runs.configuration import digest
from leaderboard.fields import Amount, Count, Hash, Moment, Part, Share, Text, Tree, Versions


class Victim(Part):
    """The victim's fingerprint (rule R13)."""

    architecture: Text
    parameters: Count
    num_classes: Annotated[int, Field(ge=1, le=100_000)]
    weights_sha256: Hash
    initialization: Text | None
    training_steps: Count | None
    stage: Text | None
    test_accuracy: Share | None
    mean: Text | None
    std: Text | None
    dtype: Text


class Machine(Part):
    """Where it was computed."""

    system: Text
    python: Text
    processor: Text | None
    accelerator: Text | None
    threads: Count
    device: Text
    processes: Count


class Cost(Part):
    """What a run cost (rule R10), all images together; offline is training, before any update."""

    seconds: Amount
    gradient_evaluations: Amount
    peak_memory_bytes: Count
    offline_seconds: Amount = 0.0
    offline_what: Text | None = None


class Provenance(Part):
    """One run behind an entry: all that `verify` needs to run it again.

    configuration: data, client and attack, resolved. configuration_sha256: `gibench.runs.configuration.digest` of it.
    weights: what weights files other than the victim's the attack used -> their SHA-256. metrics: which were available,
    or why not. engine: what the engine chose.
    """

    suite: Text
    size: Text
    command: Text
    configuration: Tree
    configuration_sha256: Hash
    victim: Victim
    weights: Annotated[dict[Text, Hash], Field(max_length=20)]
    precision: Literal["32-true", "64-true", "tf32", "bf16-mixed"]
    parity: Parity
    engine: Tree | None
    metrics: Annotated[dict[Text, Text], Field(max_length=40)]
    version: Text
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    packages: Versions
    machine: Machine
    cost: Cost
    started: Moment
    finished: Moment

    @model_validator(mode="after")
    def _check(self) -> Self:
        if set(self.configuration) != {"data", "client", "attack"}:
            raise ValueError("configuration: give data, client and attack, and nothing else")
        if digest(self.configuration) != self.configuration_sha256:
            raise ValueError("configuration_sha256: is not that of configuration")
        return self
