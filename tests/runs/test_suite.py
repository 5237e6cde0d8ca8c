"""Suites that expand a scenario over a variable, and that train their victims first."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gibench.errors import ConfigurationError
from gibench.runs.suite import METRICS, cells, families, left_out, series, trainings

Command = Callable[..., tuple[int, str, str]]
LENET = {"class_path": "gibench.victims.lenet", "init_args": {"seed": 0}}
PHOTOGRAPHS = {"class_path": "gibench.data.Photographs", "init_args": {"updates": 2}}
TREE: dict[str, Any] = {
    "sizes": {"small": {"victim_steps": [0, 2], "last": 2}, "full": {"victim_steps": [0, 2, 10], "last": 10}},
    "victims": {
        "mine": {
            "victim": LENET,
            "data": PHOTOGRAPHS,
            "steps": "${last}",
            "checkpoints": "${victim_steps}",
            "batch_size": 8,
        }
    },
    "scenarios": {
        "trained": {
            "over": {"step": "${victim_steps}"},
            "data": PHOTOGRAPHS,
            "client": {
                "class_path": "gibench.clients.FedSGD",
                "init_args": {
                    "victim": {
                        "class_path": "gibench.victims.load_weights",
                        "init_args": {"victim": LENET, "path": "runs/victims/mine/lenet_step${step}.safetensors"},
                    }
                },
            },
        },
        "fresh": {
            "data": PHOTOGRAPHS,
            "client": {"class_path": "gibench.clients.FedSGD", "init_args": {"victim": LENET}},
        },
    },
    "attacks": {"bias": {"class_path": "gibench.attacks.BiasAttack"}},
    "cells": [{"scenario": "trained", "attacks": ["bias"]}, {"scenario": "fresh", "attacks": ["bias"]}],
}


def changed(*path: str, to: object) -> dict[str, Any]:
    """The suite with one key changed."""
    tree = copy.deepcopy(TREE)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    return tree


def write(folder: Path, tree: dict[str, Any]) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_scenario_is_expanded_over_the_values_of_the_size() -> None:
    found = cells(TREE, name="suite", size="full")
    assert [cell.scenario for cell in found] == ["trained-step0", "trained-step2", "trained-step10", "fresh"]
    paths = [cell["client"]["init_args"]["victim"]["init_args"]["path"] for cell in found[:3]]
    assert paths == [f"runs/victims/mine/lenet_step{step}.safetensors" for step in (0, 2, 10)]


def test_a_variable_that_is_all_of_a_string_keeps_its_type() -> None:
    tree = changed("scenarios", "fresh", to={"over": {"n": [1, 2.5]}, "data": {"updates": "${n}"}, "client": {}})
    found = [cell for cell in cells(tree, name="suite", size="small") if cell.scenario.startswith("fresh")]
    assert [(cell.scenario, cell["data"]["updates"]) for cell in found] == [("fresh-n1", 1), ("fresh-n2.5", 2.5)]


def test_an_attack_takes_the_value_of_the_scenario_that_it_meets() -> None:
    tree = changed("attacks", "bias", to={"class_path": "gibench.attacks.BiasAttack", "path": "after-${step}"})
    tree["cells"] = [row for row in tree["cells"] if row["scenario"] == "trained"]
    found = cells(tree, name="suite", size="full")
    assert [cell["attack"]["path"] for cell in found] == ["after-0", "after-2", "after-10"]


def test_the_series_names_what_it_expands() -> None:
    members = {"trained-step0": 0, "trained-step2": 2}
    assert series(TREE, name="suite", size="small") == {"trained": {"variable": "step", "scenarios": members}}
    single: dict[str, Any] = {"data": {}, "client": {}, "attack": {}}
    assert series(single, name="single", size="full") == {}


def test_families_keep_their_order_and_take_the_values_of_the_size() -> None:
    tree = TREE | {"families": {"none": ["${best}"], "labels": "${others}"}}
    tree["attacks"] = dict.fromkeys(("a", "bias", "c"), TREE["attacks"]["bias"])
    tree["sizes"] = {"small": TREE["sizes"]["small"] | {"best": "c", "others": ["bias", "a"]}}
    found = families(tree, name="suite", size="small")
    assert list(found.items()) == [("none", ["c"]), ("labels", ["bias", "a"])]
    assert families(TREE, name="suite", size="small") == {}
    assert families({"data": {}, "client": {}, "attack": {}}, name="single", size="full") == {}
    assert len(cells(tree, name="suite", size="small")) == 3


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (["bias"], "map labels to lists"),
        ({}, "map labels to lists"),
        (None, "map labels to lists"),
        ({1: ["bias"]}, "label 1 is no text"),
        ({" ": ["bias"]}, "is no text"),
        ({"labels": "bias"}, "labels must list one attack or more"),
        ({"labels": []}, "labels must list one attack or more"),
        ({"labels": ["typo"]}, "no attack 'typo'; defined are bias"),
        ({"labels": [["bias"]]}, r"no attack \['bias'\]"),
        ({"labels": ["bias", "bias"]}, "bias is listed in labels and labels"),
        ({"labels": ["bias"], "other": ["bias"]}, "bias is listed in labels and other"),
        ({"labels": "${typo}"}, "'typo'"),
    ],
)
def test_what_is_wrong_with_families_is_named_before_anything_runs(node: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as raised:
        cells(TREE | {"families": node}, name="suite", size="small")
    assert "\n" not in str(raised.value)


def test_victims_take_the_values_of_the_size() -> None:
    found = trainings(TREE, name="suite", size="full")
    assert (found["victims/mine"]["steps"], found["victims/mine"]["checkpoints"]) == (10, [0, 2, 10])
    assert trainings(changed("victims", to={}), name="suite", size="full") == {}


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (changed("scenarios", "trained", "over", to={"step": [0], "n": [1]}), "one variable"),
        (changed("scenarios", "trained", "over", to=[0, 1]), "one variable"),
        (changed("scenarios", "trained", "over", to={"step": []}), "different numbers"),
        (changed("scenarios", "trained", "over", to={"step": [0, 0]}), "different numbers"),
        (changed("scenarios", "trained", "over", to={"step": ["a"]}), "different numbers"),
        (changed("scenarios", "trained", "over", to={"step": [True]}), "different numbers"),
        (changed("scenarios", "trained", "over", to={"step": [float("nan")]}), "different numbers"),
        (changed("scenarios", "trained", "over", to={"last": [0, 1]}), "'last'"),
        (changed("scenarios", "trained", "over", to={"epoch": [0, 1]}), "'step'"),
        (changed("scenarios", "trained", "over", to={"step": "${typo}"}), "'typo'"),
        (changed("scenarios", "fresh", "data", to={"updates": "${step}"}), "'step'"),
        (changed("scenarios", "trained-step0", to=TREE["scenarios"]["fresh"]), "trained-step0"),
        (changed("attacks", "bias", to={"class_path": "A", "init_args": {"steps": "${step}"}}), "'step'"),
        (changed("reference", to="dlg"), "attack 'dlg'"),
    ],
)
def test_what_is_wrong_with_a_series_is_named(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as raised:
        cells(tree, name="suite", size="small")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("entries", "words"), [(["mine"], "victims"), ({"mine": 3}, "victim 'mine'")])
def test_victims_of_the_wrong_kind(entries: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        trainings(changed("victims", to=entries), name="suite", size="small")


@pytest.mark.timeout(200)
def test_victims_are_trained_once_before_they_are_attacked(
    gibench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, TREE | {"reference": "bias", "families": {"labels alone": ["bias"]}})
    status, printed, errors = gibench("run", path, "--out", tmp_path / "out")
    assert status == 0, errors
    assert "training victims/mine, kept in runs/victims/mine" in printed
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    members = {"trained-step0": 0, "trained-step2": 2}
    assert manifest["series"] == {"trained": {"variable": "step", "scenarios": members}}
    assert manifest["reference"] == "bias"
    assert manifest["families"] == {"labels alone": ["bias"]}
    stages = {cell["scenario"]: cell["victim"]["training_steps"] for cell in manifest["cells"]}
    assert stages == {"trained-step0": 0, "trained-step2": 2, "fresh": 0}

    weights = tmp_path / "runs" / "victims" / "mine" / "lenet_step2.safetensors"
    before = weights.stat().st_mtime_ns
    status, _, errors = gibench("run", path, "--out", tmp_path / "out")
    assert status == 0, errors
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (changed("attacks", "bias", to={"class_path": "gibench.attacks.BiasAtack"}), "BiasAtack"),
        (changed("victims", "mine", "stepz", to=3), "victims: mine: "),
    ],
)
def test_a_mistake_shows_before_anything_is_trained(
    gibench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: dict[str, Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, errors = gibench("run", write(tmp_path, tree), "--out", tmp_path / "out")
    assert status == 1
    assert words in errors
    assert not (tmp_path / "runs").exists()


def test_printing_the_configuration_trains_nothing(
    gibench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, printed, errors = gibench("run", write(tmp_path, TREE), "--print-config")
    assert status == 0, errors
    assert "lenet_step2.safetensors" in printed
    assert not (tmp_path / "runs").exists()


def test_a_suite_leaves_metrics_out_and_a_resumed_run_must_agree(
    gibench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tree = changed("cells", to=[{"scenario": "fresh", "attacks": ["bias"]}])
    del tree["victims"]
    path = write(tmp_path, tree | {"metrics": dict.fromkeys(METRICS, False)})
    for _ in range(2):  # the second resumes
        status, _, errors = gibench("run", path, "--out", tmp_path / "out")
        assert status == 0, errors
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    missing = {column for columns in METRICS.values() for column in columns}
    assert {name for name, why in manifest["metrics"].items() if why == "left out by the suite."} == missing
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert {record["ssim"] for record in records} == {None}
    assert all(record["psnr"] > 0 for record in records)
    assert not any("nearest" in record["attack"] for record in records)
    assert not (tmp_path / "out" / "reconstructions").exists()
    assert "left out by the suite." in (tmp_path / "out" / "report.html").read_text()

    status, _, errors = gibench("run", write(tmp_path, tree | {"metrics": {"lpips": False}}), "--out", tmp_path / "out")
    assert status == 1
    assert "choose another --out" in errors


@pytest.mark.parametrize(
    ("metrics", "words"),
    [({"lpip": False}, "'lpip'"), ({"lpips": "no"}, "set it to true or false"), (["lpips"], "must be a mapping")],
)
def test_metrics_that_do_not_exist_are_named(metrics: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        cells(TREE | {"metrics": metrics}, name="suite", size="small")


def test_what_is_left_out() -> None:
    assert left_out(TREE | {"metrics": {"lpips": False, "ssim": True}}, name="suite") == {"lpips"}
    assert left_out(TREE, name="suite") == frozenset()
