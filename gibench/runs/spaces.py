"""What `gibench tune` may try: the key `tune` of a suite, read and checked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from gibench.errors import ConfigurationError
from gibench.runs.configuration import Tree, substitute
from gibench.runs.suite import require

TOLERANCE = 1e-8
"""How far, in steps, a value may lie from its grid, and be on it: what decimal fractions lose in binary."""

Space = dict[str, BaseDistribution]
"""Setting of an attack, dotted where it is nested -> what it may be."""

Settings = dict[str, Any]
"""Setting of an attack, dotted where it is nested -> its value."""


@dataclass(frozen=True)
class Budget:
    """What every attack of a suite gets alike, and what may be tried.

    trials: per scenario and attack. updates: private batches of the tune split. spaces: attack -> its settings.
    """

    trials: int
    updates: int
    spaces: dict[str, Space]


def read_budget(tree: Tree, *, name: str, size: str) -> Budget:
    """Read the key `tune` of a suite at one of its sizes.

    Raises:
        ConfigurationError: naming the key that is missing, unknown or of the wrong kind, or the range that is empty.
    """
    if "tune" not in tree:
        raise ConfigurationError(f"{name} has no key `tune`; say there what may be tried (see docs/tuning.md).")
    tune = substitute(tree["tune"], tree.get("sizes", {}).get(size, {}))
    require(tune, f"{name}: tune", needed={"trials", "updates", "spaces"}, allowed=set())
    for key in ("trials", "updates"):
        if isinstance(tune[key], bool) or not isinstance(tune[key], int) or tune[key] < 1:
            raise ConfigurationError(f"{name}: tune.{key} is {tune[key]!r}; set it to 1 or more.")
    if not isinstance(tune["spaces"], dict) or not tune["spaces"]:
        raise ConfigurationError(f"{name}: tune.spaces is empty; name an attack and what its settings may be.")
    spaces = {}
    for attack, ranges in tune["spaces"].items():
        where = f"{name}: tune.spaces.{attack}"
        if not isinstance(ranges, dict) or not ranges:
            raise ConfigurationError(f"{where} is empty; name settings, or leave the attack out.")
        spaces[attack] = {str(key): _distribution(f"{where}: {key}", node) for key, node in ranges.items()}
    return Budget(tune["trials"], tune["updates"], spaces)


def _distribution(where: str, node: Any) -> BaseDistribution:  # noqa: ANN401 - any YAML node
    if isinstance(node, list):
        if not node or not all(value is None or isinstance(value, str | int | float) for value in node):
            raise ConfigurationError(f"{where} must list at least one word, number, true, false or null.")
        return CategoricalDistribution(node)
    require(node, where, needed={"low", "high"}, allowed={"log", "step"})
    numbers = {key: node[key] for key in ("low", "high", "step") if key in node}
    for key, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigurationError(
                f"{where}: {key} is {number!r}; write a number (YAML reads 1e-6 as a word: 1.0e-6)."
            )
    low, high, step, log = numbers["low"], numbers["high"], numbers.get("step"), node.get("log", False)
    if not isinstance(log, bool):
        raise ConfigurationError(f"{where}: log is {log!r}; write true or false.")
    if low > high:
        raise ConfigurationError(f"{where} is empty: low {low} is above high {high}; swap them.")
    whole = all(isinstance(number, int) for number in numbers.values())
    if step is not None and (step <= 0 or abs((high - low) / step - round((high - low) / step)) > TOLERANCE):
        raise ConfigurationError(f"{where}: steps of {step} from {low} miss high {high}; choose one that they meet.")
    try:
        if whole and step is not None:
            return IntDistribution(low, high, log, step)
        return FloatDistribution(low, high, log, step)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {' '.join(str(error).split())} Change the range.") from error


def corners(space: Space) -> Iterator[Settings]:
    """Yield settings that, together, take both ends of every range and every choice: what is checked beforehand."""
    ends = {
        key: list(distribution.choices)
        if isinstance(distribution, CategoricalDistribution)
        else [distribution.low, distribution.high]  # type: ignore[attr-defined]  # of both other kinds
        for key, distribution in space.items()
    }
    for place in range(max(map(len, ends.values()))):
        yield {key: values[min(place, len(values) - 1)] for key, values in ends.items()}


def configured(space: Space, attack: Mapping[str, Any], *, where: str) -> Settings | None:
    """Return what a resolved configuration gives to the settings of a space; None where a value lies outside.

    Args:
        space: of the attack.
        attack: class_path and init_args, resolved, so that it names every setting that there is.
        where: scenario and attack, for the error.

    Raises:
        ConfigurationError: naming a setting that the attack does not have.
    """
    inside = {key: _inside(kind, _find(attack, key, where=where)) for key, kind in space.items()}
    return {key: values[0] for key, values in inside.items()} if all(inside.values()) else None


def _find(attack: Mapping[str, Any], key: str, *, where: str) -> Any:  # noqa: ANN401 - the value of any setting
    node: Any = attack
    for name in key.split("."):
        known = node.get("init_args", {}) if isinstance(node, Mapping) and "class_path" in node else node
        if not isinstance(known, Mapping) or name not in known:
            choices = ", ".join(known) if isinstance(known, Mapping) else ""
            raise ConfigurationError(
                f"{where}: there is no setting {key!r} to tune; "
                + (f"instead of {name!r}, there are {choices}." if choices else f"nothing stands where {name!r} would.")
            )
        node = known[name]
    return node


def _inside(distribution: BaseDistribution, value: Any) -> list[Any]:  # noqa: ANN401 - the value of any setting
    """The value as the distribution writes it, in a list; an empty list where it lies outside."""
    if isinstance(distribution, CategoricalDistribution):
        is_flag = isinstance(value, bool)  # in Python, true is 1
        same = [choice for choice in distribution.choices if isinstance(choice, bool) == is_flag and choice == value]
        return same[:1]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    low, high, step = distribution.low, distribution.high, distribution.step  # type: ignore[attr-defined]  # of both
    whole = isinstance(distribution, IntDistribution)
    steps = (value - low) / (step or 1)
    on_grid = step is None or abs(steps - round(steps)) <= TOLERANCE
    return [int(value) if whole else float(value)] if low <= value <= high and on_grid else []
