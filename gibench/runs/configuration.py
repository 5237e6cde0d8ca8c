"""Configurations: YAML files whose parts extend other files, with values of a size and single settings laid over.

A part may say `extends: FILE` (relative to the file that says so) and then change single keys.
`${name}` takes the value that the chosen size gives to `name`. Everything else is `class_path` and `init_args`, as
jsonargparse reads them.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from gibench.errors import ConfigurationError

Tree = dict[str, Any]
PARTS = ("data", "client", "attack")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def find(name: str) -> Path:
    """Return the file `name`, or the shipped configuration of that name."""
    shipped = Path(__file__).parents[1] / "configs"  # in a wheel
    if not shipped.is_dir():
        shipped = Path(__file__).parents[2] / "configs"  # in a checkout
    for candidate in (
        Path(name),
        shipped / name,
        shipped / name.removeprefix("configs/"),
        shipped / "suites" / f"{name}.yaml",
    ):
        if candidate.is_file():
            return candidate
    raise ConfigurationError(
        f"there is no configuration {name!r}; give a file, or a shipped one such as suites/first.yaml."
    )


def load(path: Path) -> Tree:
    """Read a YAML file and resolve every `extends` in it.

    Raises:
        ConfigurationError: not YAML, not a mapping, or a file that extends itself.
    """
    return _load(path.resolve(), ())


def _load(path: Path, parents: tuple[Path, ...]) -> Tree:
    if path in parents:
        raise ConfigurationError(f"{path.name} extends itself; break the circle.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; check the path after `extends`.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path.name} is not YAML: {' '.join(str(error).split())}; repair it.") from error
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{path.name} holds no mapping; see the shipped configurations for the form.")
    resolved = _resolve(tree, path, (*parents, path))
    if not isinstance(resolved, dict):
        raise ConfigurationError(f"{path.name} holds no mapping; see the shipped configurations for the form.")
    return resolved


def _resolve(node: Any, path: Path, parents: tuple[Path, ...]) -> Any:  # noqa: ANN401 - any YAML node
    if isinstance(node, list):
        return [_resolve(item, path, parents) for item in node]
    if not isinstance(node, dict):
        return node
    resolved = {key: _resolve(value, path, parents) for key, value in node.items() if key != "extends"}
    if "extends" in node:
        base = _load((path.parent / str(node["extends"])).resolve(), parents)
        return merge(base, resolved)
    return resolved


def merge(base: Tree, changes: Tree) -> Tree:
    """Return `base` with `changes` laid over it, key by key; a change of class_path drops the old init_args."""
    merged = copy.deepcopy(base)
    if changes.get("class_path", base.get("class_path")) != base.get("class_path"):
        merged.pop("init_args", None)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def substitute(node: Any, values: Tree) -> Any:  # noqa: ANN401 - any YAML node
    """Replace `${name}` by `values[name]` everywhere; a string that is nothing else keeps the value's type."""
    if isinstance(node, dict):
        return {key: substitute(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [substitute(item, values) for item in node]
    if not isinstance(node, str):
        return node
    names = _VARIABLE.findall(node)
    if unknown := [name for name in names if name not in values]:
        raise ConfigurationError(f"the size does not define {unknown[0]!r}; add it under `sizes`.")
    if names and _VARIABLE.fullmatch(node):
        return values[names[0]]
    return _VARIABLE.sub(lambda found: str(values[found.group(1)]), node)


def override(tree: Tree, options: Sequence[str]) -> Tree:
    """Lay command-line options over a cell: --attack.steps 300, --client.victim=gibench.victims.mlp.

    An argument of a part stands directly below it, without `init_args`; another class drops the old arguments.

    Raises:
        ConfigurationError: for an option that does not begin with a part, or has no value.
    """
    changed = copy.deepcopy(tree)
    for path, value in _pairs(options):
        *parents, last = path
        node = changed
        for name in parents:
            child = node.get(name)
            if not isinstance(child, dict):
                child = {"class_path": child} if isinstance(child, str) else {}
            node[name] = child
            node = child.setdefault("init_args", {}) if "class_path" in child else child
        old = node.get(last)
        if isinstance(old, dict) and "class_path" in old and isinstance(value, str):
            value = {"class_path": value}
        node[last] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return changed


def _pairs(options: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """Split options into their path and their value, which is read as YAML."""
    words = iter(options)
    for word in words:
        name, equals, value = word.partition("=")
        path = [part for part in name.removeprefix("--").split(".") if part != "init_args"]
        if not name.startswith("--") or path[0] not in PARTS:
            raise ConfigurationError(f"unknown option {name!r}; settings begin with --data, --client or --attack.")
        if not equals:
            value = next(words, "--")
        if value.startswith("--"):
            raise ConfigurationError(f"{name} has no value; write {name} VALUE.")
        try:
            yield path, yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{name}: {value!r} is not a YAML value; quote it.") from error


def digest(tree: Any) -> str:  # noqa: ANN401 - any JSON value
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
