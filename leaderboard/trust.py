"""Which code a record may name that is run without asking: verifying builds the classes of its configuration."""

from collections.abc import Iterator, Mapping
from typing import Any

from gibench.errors import ConfigurationError

_OURS = ("gibench.", "inverters.", "generators.")
_BY_PATH = (*_OURS, "torchvision.models.", "timm.")
_FILES = (".safetensors", ".npz")


def check_trusted(configuration: Mapping[str, Any]) -> None:
    """Raise unless every class and function that a configuration names is one that is run without asking.

    Raises:
        ConfigurationError: naming the first other one.
    """
    for key, name in _names(configuration):
        allowed = _OURS if key == "class_path" else _BY_PATH
        if key == "path" and ("." not in name or name.endswith(_FILES)):
            continue  # a file
        if not name.startswith(allowed) or not all(part.isidentifier() and part[0] != "_" for part in name.split(".")):
            raise ConfigurationError(
                f"the record names {name!r}, and verifying would run it; read that code, then pass --trust."
            )


def _names(node: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any configuration
    if isinstance(node, list):
        for each in node:
            yield from _names(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("class_path", "path") and isinstance(value, str):
                yield key, value
            else:
                yield from _names(value)
    elif isinstance(node, str) and node.partition(".")[0].isidentifier() and "." in node and not node.endswith(_FILES):
        yield "path", node  # jsonargparse reads a bare class path where a class is expected
