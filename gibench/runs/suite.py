"""Suites: scenarios and attacks, and the cells in which they meet, one plain dictionary each.

A suite names scenarios (data and client) and attacks, and lists in `cells` which meet; a cell may change single
settings of its attacks.

A scenario, or a training, may say `over: {VARIABLE: [VALUES]}` and is expanded into one for each value, NAME-
VARIABLEVALUE, with `${VARIABLE}` replaced in it, and in the attacks on it; cells that name it apply to all of them.
`victims`, then `inverters`, name trainings, as `gibench fit` reads them, that come before everything else. `reference`
names the attack that the report pairs with each other one.

`identifiability: {updates: N}` has the first N updates of each scenario diagnosed before they are attacked.

`limits` names oracles (see `gibench.metrics.limits`), such as the range limit of a generator; a scenario that says
`limits: [NAME]` has its private images held against them.

`metrics: {NAME: false}` leaves out scores that a suite does not need, or that cost more than its attacks; see METRICS.
"""

import copy
from math import isfinite
from pathlib import Path
from typing import Any

from gibench.errors import ConfigurationError
from gibench.runs.configuration import PARTS, Tree, merge, substitute
from gibench.runs.tuned import Chosen

METRICS = {
    "lpips": ("lpips_alex", "lpips_vgg"),
    "ssim": ("ssim",),
    "identified": ("identified",),
    "nearest_image": ("nearest image",),
    "reconstructions": ("stored reconstructions",),
}
"""What `metrics` may leave out, and what the manifest calls it: both LPIPS, SSIM, whose image a
reconstruction would be taken for, the nearest image of the prior split (of the floors), and the pictures on disk."""

TRAINED = {"victims": "victim", "inverters": "inverter"}
"""What a suite may have trained first, in this order, and what one entry is called."""


class Cell(dict[str, Any]):
    """One attack on one scenario: data, client and attack, the names it is filed under, and the scenario's limits."""

    def __init__(
        self,
        scenario: str,
        attack: str,
        parts: Tree,
        *,
        wrong_update: bool = False,
        limits: dict[str, Tree] | None = None,
    ) -> None:
        super().__init__(parts)
        self.limits = limits or {}
        self.scenario = scenario
        self.attack = attack
        self.wrong_update = wrong_update


def cells(tree: Tree, *, name: str, size: str, file: Path | None = None) -> list[Cell]:
    """Return the cells of a suite, or the one cell of a plain run configuration (data, client, attack).

    Args:
        tree: as `gibench.runs.configuration.load` reads it.
        name: what errors call it.
        size: one of its sizes.
        file: where it stands, to which `tuned` is relative; None leaves the attacks as they are before tuning.

    Raises:
        ConfigurationError: naming the key that is unknown, missing or of the wrong kind, or what `tuned` lacks.
    """
    if "cells" not in tree:
        require(tree, name, needed=set(PARTS), allowed={"name"})
        parts = {key: tree[key] for key in PARTS}
        return [Cell(str(tree.get("name", name)), attack_name(tree["attack"]), parts)]
    optional = {"name", "sizes", "description", *TRAINED, "reference", "tune", "tuned", "metrics", "identifiability"}
    optional.add("limits")
    left_out(tree, name=name)
    require(tree, name, needed={"scenarios", "attacks", "cells"}, allowed=optional)
    values = _values(tree, name=name, size=size)
    templates = _expand(tree["scenarios"], values, name=name)
    every = values.copy()
    for members in templates.values():
        for own, _ in members.values():
            every |= own
    # What no cell uses is read, too: a mistake in it shows.
    substitute({key: value for key, value in tree.items() if key in ("reference", "attacks", "cells", "limits")}, every)
    if "reference" in tree:
        _named(tree["attacks"], substitute(tree["reference"], values), "attack")
    defined = tree["attacks"] if isinstance(tree["attacks"], dict) else {}
    found: list[Cell] = []
    for row in tree["cells"]:
        require(row, f"{name}: cells", needed={"scenario", "attacks"}, allowed={"wrong_update", "data"})
        for member, (own, scenario) in _named(templates, substitute(row["scenario"], values), "scenario").items():
            changes = substitute(row["attacks"], own) if isinstance(row["attacks"], dict) else {}
            for attack in row["attacks"]:
                attacks = {name: substitute(node, own) if name == attack else node for name, node in defined.items()}
                attacked = merge(_named(attacks, attack, "attack"), changes.get(attack) or {})
                parts = {
                    "data": merge(scenario["data"], substitute(row.get("data", {}), own)),
                    "client": copy.deepcopy(scenario["client"]),
                    "attack": attacked,
                }
                limits = {
                    each: substitute(_named(tree.get("limits"), each, "limit"), own) for each in scenario["limits"]
                }
                wrong_update = attack in row.get("wrong_update", ())
                found.append(Cell(member, attack, parts, wrong_update=wrong_update, limits=limits))
    keys = [(cell.scenario, cell.attack) for cell in found]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ConfigurationError(f"{name} lists {' x '.join(twice[0])} twice; give one of them another name.")
    if file is not None and "tuned" in tree:
        chosen = Chosen(tree, suite=file, size=size)
        for cell in found:
            cell["attack"] = chosen.lay(cell, scenario=cell.scenario, name=cell.attack)
    return found


def series(tree: Tree, *, name: str, size: str) -> Tree:
    """Return what `over` expands: scenario -> its variable, and name -> value of each scenario that it stands for.

    Raises:
        ConfigurationError: as `cells`.
    """
    if "cells" not in tree:
        return {}
    values = _values(tree, name=name, size=size)
    found = {}
    for scenario, template in tree["scenarios"].items():
        if "over" in template:
            variable, points = _over(scenario, template["over"], values, where=f"{name}: {scenario}")
            found[scenario] = {"variable": variable, "scenarios": points}
    return found


def left_out(tree: Tree, *, name: str) -> frozenset[str]:
    """Return what the suite leaves out, of METRICS.

    Raises:
        ConfigurationError: for an unknown key, or a value that is neither true nor false.
    """
    wanted = tree.get("metrics", {}) if "cells" in tree else {}
    require(wanted, f"{name}: metrics", needed=set(), allowed=set(METRICS))
    if odd := [key for key, value in wanted.items() if not isinstance(value, bool)]:
        raise ConfigurationError(f"{name}: metrics: {odd[0]} is {wanted[odd[0]]!r}; set it to true or false.")
    return frozenset(key for key, value in wanted.items() if not value)


def trainings(tree: Tree, *, name: str, size: str) -> dict[str, Tree]:
    """Return the trainings that come first, in order: "victims/NAME" or "inverters/NAME" -> what `gibench fit` reads.

    Raises:
        ConfigurationError: as `cells`.
    """
    found: dict[str, Tree] = {}
    for room, kind in TRAINED.items():
        entries = tree.get(room, {})
        if not isinstance(entries, dict):
            raise ConfigurationError(f"{name}: {room} must map names to trainings; see configs/{room} for their form.")
        values = _values(tree, name=name, size=size) if entries else {}
        whole = {entry: substitute(node, values) if isinstance(node, str) else node for entry, node in entries.items()}
        for entry in whole:
            template = _named(whole, entry, kind)
            members = _members(entry, template, values, where=f"{name}: {room}: {entry}")
            found |= {f"{room}/{member}": training for member, (_, training) in members.items()}
    return found


def diagnosed(tree: Tree, *, name: str, size: str) -> int:
    """Return how many updates of each scenario are diagnosed (see `gibench.diagnostics.identifiability`); 0 is none.

    Raises:
        ConfigurationError: the key holds something else than a positive number of updates.
    """
    if "identifiability" not in tree:
        return 0
    settings = substitute(tree["identifiability"], _values(tree, name=name, size=size))
    require(settings, f"{name}: identifiability", needed={"updates"}, allowed=set())
    updates = settings["updates"]
    if not isinstance(updates, int) or isinstance(updates, bool) or updates < 1:
        raise ConfigurationError(f"{name}: identifiability.updates is {updates!r}; diagnose 1 update or more.")
    return updates


def _values(tree: Tree, *, name: str, size: str) -> Tree:
    """What the size gives to each variable of a suite."""
    sizes = tree.get("sizes", {"small": {}})
    if size not in sizes:
        raise ConfigurationError(f"{name} has no size {size!r}; choose among {', '.join(sizes)}.")
    values: Tree = sizes[size]
    return values


def _expand(scenarios: Any, values: Tree, *, name: str) -> dict[str, dict[str, tuple[Tree, Tree]]]:  # noqa: ANN401
    """Scenario -> all that it stands for, by name: all values that hold for it, and itself with them filled in."""
    expanded: dict[str, dict[str, tuple[Tree, Tree]]] = {}
    for scenario in scenarios if isinstance(scenarios, dict) else ():
        template, where = _named(scenarios, scenario, "scenario"), f"{name}: {scenario}"
        require(template, where, needed={"data", "client"}, allowed={"over", "limits"})
        if not isinstance(template.get("limits", []), list):
            raise ConfigurationError(f"{where}: limits is {template['limits']!r}; list names, such as limits: [dcgan].")
        expanded[scenario] = _members(scenario, {"limits": []} | template, values, where=where)
    names = [member for members in expanded.values() for member in members]
    if twice := [member for member in names if names.count(member) > 1]:
        raise ConfigurationError(f"{name} has two scenarios {twice[0]!r}; give one of them another name.")
    return expanded


def _members(name: str, template: Tree, values: Tree, *, where: str) -> dict[str, tuple[Tree, Tree]]:
    """What a template stands for, by name: all values that hold for it, and itself with them filled in."""
    if "over" not in template:
        return {name: (values, substitute(template, values))}
    variable, points = _over(name, template["over"], values, where=where)
    rest = {key: part for key, part in template.items() if key != "over"}
    owns = {member: {**values, variable: point} for member, point in points.items()}
    return {member: (own, substitute(rest, own)) for member, own in owns.items()}


def _over(scenario: str, node: Any, values: Tree, *, where: str) -> tuple[str, dict[str, float]]:  # noqa: ANN401 - YAML
    """Read `over`: its variable, and the name and value of each scenario that it stands for."""
    over = substitute(node, values)
    if not isinstance(over, dict) or len(over) != 1:
        raise ConfigurationError(f"{where}: over must name one variable, such as over: {{step: [0, 10]}}.")
    [(variable, points)] = over.items()
    if variable in values:
        raise ConfigurationError(f"{where}: the size defines {variable!r}, too; give one of them another name.")
    different = isinstance(points, list) and 0 < len(points) == len({str(point) for point in points})
    if not different or not all(_is_number(point) for point in points):
        raise ConfigurationError(f"{where}: over {variable} must list different numbers, not {points!r}.")
    return variable, {f"{scenario}-{variable}{point}": point for point in points}


def _is_number(value: Any) -> bool:  # noqa: ANN401 - any YAML node
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def attack_name(part: Any) -> str:  # noqa: ANN401 - any YAML node
    """The name of an attack that a configuration does not name: the last part of its class path."""
    path = part.get("class_path", "attack") if isinstance(part, dict) else str(part)
    return str(path).rpartition(".")[2]


def require(tree: Any, where: str, *, needed: set[str], allowed: set[str]) -> None:  # noqa: ANN401 - any YAML node
    """Raise ConfigurationError unless `tree` is a mapping with all `needed` keys and none but those and `allowed`."""
    if not isinstance(tree, dict):
        raise ConfigurationError(f"{where} must be a mapping with the keys {', '.join(sorted(needed))}.")
    if missing := needed - set(tree):
        raise ConfigurationError(f"{where} lacks {', '.join(sorted(missing))}; add it.")
    if unknown := set(tree) - needed - allowed:
        choices = ", ".join(sorted(needed | allowed))
        raise ConfigurationError(f"{where} has the unknown key {sorted(unknown)[0]!r}; known are {choices}.")


def _named(parts: Any, name: str, kind: str) -> Tree:  # noqa: ANN401 - any YAML node
    if not isinstance(parts, dict) or not isinstance(parts.get(name), dict):
        known = ", ".join(parts) if isinstance(parts, dict) else "none"
        raise ConfigurationError(f"there is no {kind} {name!r}; defined are {known}.")
    part: Tree = parts[name]
    return part
