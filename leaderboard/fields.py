"""The types of single values in a published file: bounded, finite, printable."""

import math
import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

CEILING = 100.0
"""dB; what an exact reconstruction counts as."""
MOST_CONFIGURATION = 5_000


def _printable(text: str) -> str:
    if any(ord(character) < 32 or 127 <= ord(character) < 160 or ord(character) in _UNSEEN for character in text):
        raise ValueError("holds control characters; write plain text in one line")
    if text != text.strip() or text[:1] in "=+-@":
        raise ValueError("begins or ends with a space, or begins as a formula (= + - @); leave that out")
    return text


# Marks that turn the direction of writing or are not seen: with them a name can look like another one.
_UNSEEN = {*range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF, 0xFFFE, 0xFFFF} | {
    *range(0xD800, 0xE000)
}


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("says no time zone; write it in UTC, such as 2026-01-31T12:00:00+00:00")
    return text


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Accept JSON of few values, finite and not deep: it is shown, and `verify` builds the parts that it names."""
    left, count = [(value, 1)], 0
    while left:
        node, depth = left.pop()
        count += 1
        if depth > 16 or count > MOST_CONFIGURATION:
            raise ValueError(f"is nested more than 16 deep or holds more than {MOST_CONFIGURATION} values")
        if isinstance(node, float) and not math.isfinite(node):
            raise ValueError("holds NaN or infinity")
        if isinstance(node, str) and (len(node) > 2000 or "\0" in node):
            raise ValueError("holds a text of more than 2,000 characters, or a zero byte")
        if isinstance(node, dict):
            left += [(each, depth + 1) for each in [*node, *node.values()]]
        elif isinstance(node, list):
            left += [(each, depth + 1) for each in node]
        elif not isinstance(node, str | float | int | bool | None):
            raise ValueError("holds something that is not JSON")
    return value


def _picture_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}\.png", name):
        raise ValueError("is no plain name of a PNG file; pictures lie beside their entry")
    return name


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,79}$")]
"""A part of a path and of an address: letters, digits, '-' and '_'."""
Text = Annotated[str, Field(min_length=1, max_length=300), AfterValidator(_printable)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Moment = Annotated[str, Field(max_length=40), AfterValidator(_moment)]
Decibels = Annotated[float, Field(ge=0, le=CEILING, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Address = Annotated[str, Field(pattern=r"^https://[A-Za-z0-9.-]+(/[A-Za-z0-9._~/?#=&%:+-]*)?$", max_length=300)]
Tree = Annotated[dict[str, Any], BeforeValidator(_plain)]
Versions = Annotated[dict[Annotated[str, Field(max_length=60)], Text | None], Field(max_length=60)]
PictureName = Annotated[str, AfterValidator(_picture_name)]


class Part(BaseModel):
    """Part of a published file: strict types, finite numbers, no unknown keys, never changed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
