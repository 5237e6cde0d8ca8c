"""Configurations: extends, sizes, cells, and one clear line for whatever is wrong."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gibench.errors import ConfigurationError
from gibench.runs.configuration import find, load, merge, override, substitute
from gibench.runs.suite import cells

SUITE = {
    "sizes": {"small": {"n": 2}, "full": {"n": 50}},
    "scenarios": {"s": {"data": {"class_path": "D", "init_args": {"updates": "${n}"}}, "client": {"class_path": "C"}}},
    "attacks": {"a": {"class_path": "A", "init_args": {"steps": 3, "rate": 0.1}}},
    "cells": [{"scenario": "s", "attacks": {"a": {"init_args": {"steps": "${n}"}}}, "wrong_update": ["a"]}],
}


def write(folder: Path, name: str, tree: object) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_part_extends_a_file_and_changes_single_keys(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", {"class_path": "A", "init_args": {"x": 1, "y": 2}})
    path = write(tmp_path, "top.yaml", {"attack": {"extends": "base.yaml", "init_args": {"y": 3}}})
    assert load(path) == {"attack": {"class_path": "A", "init_args": {"x": 1, "y": 3}}}


def test_another_class_drops_the_old_arguments() -> None:
    merged = merge({"class_path": "A", "init_args": {"x": 1}}, {"class_path": "B", "init_args": {"z": 1}})
    assert merged == {"class_path": "B", "init_args": {"z": 1}}


@pytest.mark.parametrize(("size", "n"), [("small", 2), ("full", 50)])
def test_sizes_fill_in_values_with_their_type(size: str, n: int) -> None:
    (cell,) = cells(SUITE, name="suite", size=size)
    assert (cell.scenario, cell.attack, cell.wrong_update) == ("s", "a", True)
    assert cell["data"]["init_args"]["updates"] == n
    assert cell["attack"]["init_args"] == {"steps": n, "rate": 0.1}


def test_a_plain_configuration_is_one_cell() -> None:
    parts = {"data": {"class_path": "D"}, "client": {"class_path": "C"}, "attack": {"class_path": "x.y.dlg"}}
    (cell,) = cells(parts, name="mine", size="small")
    assert (cell.scenario, cell.attack) == ("mine", "dlg")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--attack.steps", "5"], {"class_path": "A", "init_args": {"steps": 5, "threat": {"labels": "none"}}}),
        (["--attack.init_args.steps=5"], {"class_path": "A", "init_args": {"steps": 5, "threat": {"labels": "none"}}}),
        (["--attack.threat.labels=set"], {"class_path": "A", "init_args": {"steps": 3, "threat": {"labels": "set"}}}),
        (["--attack", "B", "--attack.rate", "0.5"], {"class_path": "B", "init_args": {"rate": 0.5}}),
        (["--attack.threat=[3, 8]"], {"class_path": "A", "init_args": {"steps": 3, "threat": [3, 8]}}),
    ],
)
def test_options_are_laid_over_a_cell(options: list[str], expected: object) -> None:
    cell = {"attack": {"class_path": "A", "init_args": {"steps": 3, "threat": {"labels": "none"}}}}
    before = copy.deepcopy(cell)
    assert override(cell, options) == {"attack": expected}
    assert cell == before


def broken(**changes: object) -> dict[str, object]:
    return {**SUITE, **changes}


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (broken(sizes={"tiny": {}}), "tiny"),
        (broken(sizes={"small": {}}), "'n'"),
        (broken(cells=[{"scenario": "t", "attacks": ["a"]}]), "scenario 't'"),
        (broken(cells=[{"scenario": "s", "attacks": ["b"]}]), "attack 'b'"),
        (broken(cells=[{"scenario": "s"}]), "attacks"),
        (broken(cells=[{"scenario": "s", "attacks": ["a"], "typo": 1}]), "typo"),
        (broken(cells=[{"scenario": "s", "attacks": ["a"]}] * 2), "twice"),
        (broken(surprise=1), "surprise"),
        ({"data": {}, "client": {}}, "attack"),
    ],
)
def test_what_is_wrong_is_named(tree: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        cells(tree, name="suite", size="small")


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "\x00"])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"bad\.yaml"):
        load(tmp_path / "bad.yaml")


def test_missing_and_circular_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere"):
        find("nowhere.yaml")
    circle = write(tmp_path, "circle.yaml", {"extends": "circle.yaml"})
    with pytest.raises(ConfigurationError, match="itself"):
        load(circle)
    dangling = write(tmp_path, "dangling.yaml", {"extends": "gone.yaml"})
    with pytest.raises(ConfigurationError, match="gone"):
        load(dangling)


def test_a_yaml_tag_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("a: !!python/object/apply:os.system ['echo owned']")
    with pytest.raises(ConfigurationError, match=r"evil\.yaml"):
        load(tmp_path / "evil.yaml")


trees = st.recursive(
    st.integers() | st.text(alphabet="ab", max_size=3),
    lambda inner: st.dictionaries(st.text(alphabet="xyz", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@given(trees, trees)
def test_merging_keeps_what_is_not_changed(base: dict, changes: dict) -> None:  # type: ignore[type-arg]
    merged = merge(base, changes)
    assert set(merged) == set(base) | set(changes)
    assert all(merged[key] == base[key] for key in set(base) - set(changes))
    assert merge(merged, changes) == merged
    assert substitute(merged, {}) == merged
