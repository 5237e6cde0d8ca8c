"""Reading files that somebody sent: bounded before they are parsed, and every problem named with its place."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

MOST_BYTES = 16 * 2**20
DEEPEST = 24
_MOST_NAMED = 50
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)

Model = TypeVar("Model", bound=BaseModel)


class Problem(NamedTuple):
    """What is wrong, in which file, and where in it."""

    file: Path
    where: str
    what: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.where}" if self.where else str(self.file)
        return f"{place}: {self.what}"


class Read(NamedTuple):
    """A file that was read: what it holds, or None and why; and the SHA-256 of its bytes."""

    content: Any
    sha256: str
    problems: list[Problem]


def read(path: Path, model: type[Model]) -> Read:
    """Read a file as `model`; nothing of it is believed before size, nesting and types are checked."""
    try:
        if path.is_symlink() or not path.is_file():
            return _refuse(path, "is no plain file")
        if (size := path.stat().st_size) > MOST_BYTES:
            return _refuse(path, f"has {size:,} bytes; an entry has at most {MOST_BYTES:,}")
        content = path.read_bytes()
    except OSError as error:
        return _refuse(path, f"cannot be read: {error.strerror}")
    return parse(content, model, path)


def parse(content: bytes, model: type[Model], path: Path) -> Read:
    """Parse what a file holds; see `read`."""
    if (deepest := nesting(content)) > DEEPEST:
        return _refuse(path, f"is nested {deepest} deep; an entry at most {DEEPEST}")
    try:
        text = content.decode("utf-8")
        json.loads(text, object_pairs_hook=_no_key_twice, parse_constant=_no_constant, parse_int=_int)
    except (ValueError, RecursionError) as error:
        return _refuse(path, f"is no JSON: {' '.join(str(error).split())}"[:300])
    try:
        found = model.model_validate_json(text)
    except ValidationError as error:
        return Read(None, "", [_problem(path, each) for each in error.errors(include_input=False)[:_MOST_NAMED]])
    except ValueError as error:  # such as lone surrogates, which JSON can spell
        return _refuse(path, " ".join(str(error).split())[:300])
    return Read(found, hashlib.sha256(content).hexdigest(), [])


def nesting(content: bytes) -> int:
    """How deep brackets nest, outside of strings; counted without building anything."""
    depth = deepest = 0
    for token in _TOKEN.finditer(content):
        first = content[token.start()]
        depth += (first in b"[{") - (first in b"]}")
        deepest = max(deepest, depth)
        if deepest > DEEPEST:
            break
    return deepest


def _problem(path: Path, error: Any) -> Problem:  # noqa: ANN401 - pydantic's details
    where = ".".join(str(part) for part in error["loc"])
    return Problem(path, _shown(where), _shown(error["msg"].removeprefix("Value error, ")))


def _shown(text: str) -> str:
    """What is printed of somebody's text: one line without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text)[:1500]


def _refuse(path: Path, what: str) -> Read:
    return Read(None, "", [Problem(path, "", _shown(what))])


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _int(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)
