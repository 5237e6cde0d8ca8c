"""What others confirmed of an entry, in a file of its own that names the entry by its SHA-256."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leaderboard.fields import CEILING, Count, Decibels, Hash, Moment, Part, Text
from leaderboard.provenance import Machine


class Verification(Part):
    """What somebody found who ran a sample of an entry again, or scored its stored pictures again.

    kind: "re-run" from the record alone, or "re-score" of the pictures. measure: what is compared; labels where they
    are the whole answer. whole_groups: whether the batches ran together with those that they were attacked with, so
    that even rounding is the same on the same machine. agreed: how many of `images` are within `tolerance`, or have the
    same label. mean_difference: this one minus the recorded. outcome: "image by image" where all agree, "on average"
    where their mean does, else "not reproduced".
    """

    kind: Literal["re-run", "re-score"]
    measure: Literal["psnr, dB", "labels, %"]
    whole_groups: bool
    outcome: Literal["image by image", "on average", "not reproduced"]
    images: Annotated[int, Field(ge=1)]
    agreed: Count
    mean_difference: Annotated[float, Field(ge=-CEILING, le=CEILING)]
    largest_difference: Decibels
    tolerance: Decibels
    by: Text
    at: Moment
    version: Text
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}(-dirty)?$")] | None
    machine: Machine

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.agreed > self.images:
            raise ValueError(f"agreed: {self.agreed} of {self.images} images")
        means = abs(self.mean_difference) <= self.tolerance
        said = "image by image" if self.agreed == self.images else "on average" if means else "not reproduced"
        if said != self.outcome:
            raise ValueError(f"outcome: these numbers say {said!r}")
        return self


class Verifications(Part):
    """`<attack>.verified.json`: what is confirmed of one entry, which is named by its SHA-256."""

    schema_version: Literal[1]
    entry_sha256: Hash
    verifications: Annotated[tuple[Verification, ...], Field(min_length=1, max_length=100)]
