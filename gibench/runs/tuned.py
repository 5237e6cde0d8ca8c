"""The file of chosen settings that `gibench tune` writes, laid over the attacks of a suite at `gibench run`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gibench.errors import ConfigurationError
from gibench.runs.configuration import Tree, digest, load, override, substitute


def options(settings: Mapping[str, Any]) -> list[str]:
    """Write settings of an attack as `gibench run` takes them: --attack.rate=0.1; YAML keeps every digit and type."""
    return [f"--attack.{key}={yaml.safe_dump(value)}" for key, value in settings.items()]


def purpose(cell: Mapping[str, Any]) -> str:
    """A digest of what settings are chosen for: the client, and the attack before them."""
    return digest([cell["client"], cell["attack"]])


class Chosen:
    """What was chosen for the attacks of a suite at one size.

    Args:
        tree: the suite; its key `tuned` names the file, relative to the suite, `${size}` standing for the size's name.
        suite: the suite's file.
        size: the name of the size.

    Raises:
        ConfigurationError: when the file is not there, or holds no choice.
    """

    def __init__(self, tree: Tree, *, suite: Path, size: str) -> None:
        self.file = suite.parent / str(substitute(tree["tuned"], {"size": size}))
        self.spaces = _mapping(_mapping(tree.get("tune")).get("spaces"))
        self.remedy = f"run `gibench tune {suite} --size {size} --write {self.file}` first"
        if not self.file.is_file():
            raise ConfigurationError(f"there are no tuned settings {self.file}; {self.remedy}.")
        chosen = load(self.file).get("chosen")
        if not isinstance(chosen, dict):
            raise ConfigurationError(f"{self.file} holds no `chosen` settings; {self.remedy}.")
        self.chosen: Tree = chosen

    def lay(self, cell: Mapping[str, Any], *, scenario: str, name: str) -> Tree:
        """Return the configuration of a cell's attack with what was chosen for it in a scenario laid over.

        Raises:
            ConfigurationError: for an attack with a space of which nothing, or not exactly its settings, was chosen; or
                for another client, or another attack, than the settings were chosen for.
        """
        attack: Tree = cell["attack"]
        entry = _mapping(_mapping(self.chosen.get(scenario)).get(name))
        space = self.spaces.get(name)
        if not entry and space is None:
            return attack
        settings = _mapping(entry.get("settings"))
        if not settings or (space is not None and set(settings) != set(_mapping(space))):
            raise ConfigurationError(f"{self.file} lacks the settings of {scenario} x {name}; {self.remedy}.")
        if entry.get("purpose") != purpose(cell):
            raise ConfigurationError(
                f"{self.file} was chosen for another client or attack than {scenario} x {name}; {self.remedy}."
            )
        laid: Tree = override({"attack": attack}, options(settings))["attack"]
        return laid


def _mapping(node: Any) -> Tree:  # noqa: ANN401 - any YAML node
    """The node, where it is a mapping; elsewhere an empty one, which lacks what is looked for."""
    return node if isinstance(node, dict) else {}
