"""The schema of a published result: one file for each attack on one scenario under one threat model.

Numbers are numbers, unknown keys are refused, texts are short and hold no control characters, and what the parts say of
each other is checked: `Entry` raises pydantic's ValidationError with every problem and its place.

An entry is never changed once it is published. A correction is a new revision (`supersedes`), and what others confirm
stands in a file of its own (`leaderboard.verifications`) that names the entry by its SHA-256.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gibench.types import ThreatModel
from leaderboard import consistency
from leaderboard.consistency import ROUNDING
from leaderboard.fields import (
    CEILING,
    Address,
    Amount,
    Count,
    Decibels,
    Hash,
    Moment,
    Name,
    Part,
    PictureName,
    Seed,
    Share,
    Text,
)
from leaderboard.provenance import Provenance

SCHEMA_VERSION = 1
MOST_IMAGES = 20_000
LEAST_IMAGES = 100
"""A row with fewer images is shown, but has no rank (rule R8)."""

Family = Literal["none", "handcrafted", "statistics", "density", "generative", "learned inverter", "closed form"]
"""What the attacker believes of images before any update: nothing; smoothness and norms; the statistics of BatchNorm;
a density fitted to other images; the range of a generator; an inverter trained on pairs; "closed form" solves for the
images, or for labels alone, and needs no belief."""


class Data(Part):
    """Which images were attacked, and how they were put into batches.

    split_hashes: SHA-256 of the sorted image ids of the prior, tune and score split (rule R3). content_sha256: of the
    labels and the score split's pixels.
    """

    name: Name
    image_shape: Annotated[tuple[int, int, int], Field(description="(C, H, W)")]
    num_classes: Annotated[int, Field(ge=1, le=100_000)]
    content_sha256: Hash
    split_hashes: dict[Literal["prior", "tune", "score"], Hash]
    split: Literal["score"]
    sampler: Name
    k: Annotated[int, Field(ge=1, le=100_000)] | None
    batch_size: Annotated[int, Field(ge=1, le=100_000)]
    seed: Seed

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(1 <= side <= 4096 for side in self.image_shape):
            raise ValueError("image_shape: sides are 1 to 4096")
        if len(self.split_hashes) != 3:
            raise ValueError("split_hashes: give prior, tune and score")
        return self


class Citation(Part):
    """Where the method comes from."""

    title: Text
    authors: Annotated[tuple[Text, ...], Field(min_length=1, max_length=60)]
    year: Annotated[int, Field(ge=1950, le=2100)]
    venue: Text | None = None
    url: Address | None = None


class Method(Part):
    """The attack.

    name: in its suite, and of the file. title: how the page calls it. fidelity: whether the implementation reached the
    official one on the same weights and images (rule R16); "own" where there is no other one.
    """

    name: Name
    title: Text
    family: Family
    fidelity: Literal["verified", "unverified", "own"]
    citation: Citation | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name.casefold() == "private":
            raise ValueError("name: that folder holds the private images; choose another one")
        return self


class Image(Part):
    """The score of one private image, the columns of `gibench.types.Record` that the leaderboard uses.

    run: which of `runs` it belongs to; several runs differ in the victim's seed.
    """

    run: Annotated[int, Field(ge=0, lt=1000)]
    update_id: Name
    position: Annotated[int, Field(ge=0, lt=100_000)]
    image_id: Text
    status: Literal["ok", "diverged", "refused", "labels"]
    psnr: Decibels
    mse: Share
    ssim: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    lpips_alex: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None = None
    lpips_vgg: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None = None
    psnr_oracle: Decibels | None = None
    label: Annotated[int, Field(ge=0, lt=100_000)]
    label_inferred: Annotated[int, Field(ge=0, lt=100_000)] | None = None
    seed: Seed
    gradient_evaluations: Amount
    seconds: Amount

    @model_validator(mode="after")
    def _check(self) -> Self:
        of_mse = CEILING if self.mse <= 0 else min(CEILING, -10 * math.log10(self.mse))
        if abs(self.psnr - of_mse) > ROUNDING:
            raise ValueError(f"psnr is {self.psnr:g} dB, but mse {self.mse:g} is {of_mse:.2f} dB")
        return self

    @property
    def key(self) -> tuple[int, str, int]:
        """What makes an image unique within an entry."""
        return self.run, self.update_id, self.position


class Yardstick(Part):
    """What a floor or a control scores on the images of the entry, in their order."""

    psnr: Annotated[tuple[Decibels, ...], Field(max_length=MOST_IMAGES)]
    mse: Annotated[tuple[Share, ...], Field(max_length=MOST_IMAGES)]


class Supersedes(Part):
    """Which revision of the same result this one replaces, and why."""

    revision: Annotated[int, Field(ge=1, le=999)]
    sha256: Hash
    reason: Text


class Submission(Part):
    """Who publishes it, and when."""

    by: Text
    at: Moment
    note: Text | None = None


class Picture(Part):
    """A stored reconstruction; the private image lies in `private/` of the scenario under the same name."""

    image: Count
    file: PictureName
    sha256: Hash
    private_sha256: Hash


class Entry(Part):
    """One attack on one scenario under one threat model, image by image.

    images: in the order in which they were attacked, the same for all attacks on a scenario. floors: what needs no
    update (rule R5), oracles included; controls: the attack on another client's update (rule R6). pictures: the fixed
    sample, and the best, median and worst image, see `leaderboard.pictures`.
    """

    schema_version: Literal[1]
    revision: Annotated[int, Field(ge=1, le=999)]
    scenario: Name
    data: Data
    threat_model: ThreatModel
    attack: Method
    success_psnr: Decibels
    submission: Submission
    supersedes: Supersedes | None
    runs: Annotated[tuple[Provenance, ...], Field(min_length=1, max_length=100)]
    pictures: Annotated[tuple[Picture, ...], Field(max_length=24)]
    floors: Annotated[dict[Text, Yardstick], Field(min_length=1, max_length=24)]
    controls: Annotated[dict[Text, Yardstick], Field(max_length=8)]
    images: Annotated[tuple[Image, ...], Field(min_length=1, max_length=MOST_IMAGES)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [
            *consistency.images(self),
            *consistency.yardsticks(self),
            *consistency.runs(self),
            *consistency.pictures(self),
        ]
        if (self.revision > 1) != (self.supersedes is not None):
            problems.append("supersedes: a first revision replaces nothing, and each later one says what")
        elif self.supersedes and self.supersedes.revision != self.revision - 1:
            problems.append(f"supersedes: revision {self.revision} replaces revision {self.revision - 1}")
        if problems:
            raise ValueError("; ".join(problems[:20]))
        return self


def json_schema() -> dict[str, Any]:
    """The JSON Schema of an entry, as it is shipped in `leaderboard/entry.schema.json`."""
    schema = Entry.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
