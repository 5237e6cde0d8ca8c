"""Two runs compared image by image, and the panel of rule R14 that is made of it."""

import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gibench.metrics import paired_difference
from gibench.precision import TOLERANCE, Panel, judge
from gibench.report.words import signed

Command = Callable[..., tuple[int, str, str]]
Lines = list[dict[str, Any]]


@pytest.fixture
def pair(gibench: Command, single: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The same tiny run in 32-true and in bf16-mixed."""
    folders = tmp_path / "32", tmp_path / "bf16"
    for folder, precision in zip(folders, ("32-true", "bf16-mixed"), strict=True):
        status, _, errors = gibench("run", single, "--out", folder, "--precision", precision)
        assert status == 0, errors
    return folders


def lines(folder: Path) -> Lines:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def rewrite(folder: Path, change: Callable[[Lines], Lines]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in change(lines(folder)))
    (folder / "records.jsonl").write_text(text)


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    for cell in manifest["cells"]:
        change(cell)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def attacked(folder: Path) -> Lines:
    return [line for line in lines(folder) if not line["attack"].startswith("floor")]


def compared(gibench: Command, *arguments: object) -> list[dict[str, Any]]:
    path = Path(str(arguments[0])).parent / "comparison.json"
    status, _, errors = gibench("compare", *arguments, "--json", path)
    assert status == 0, errors
    found: list[dict[str, Any]] = json.loads(path.read_text())["comparisons"]
    return found


def test_two_precisions_are_paired_by_image(gibench: Command, pair: tuple[Path, Path]) -> None:
    first, second = map(attacked, pair)
    [found] = compared(gibench, *pair)
    scores = [{(line["update_id"], line["image_id"]): line["psnr"] for line in run} for run in (second, first)]
    expected = paired_difference(*scores)
    difference = found["difference"]
    assert (difference["value"], difference["images"]) == (pytest.approx(expected.value), 6)
    assert difference["low"] <= difference["value"] <= difference["high"]
    assert difference["value"] != 0  # bfloat16 was used
    assert found["reference"]["psnr"] == pytest.approx(statistics.fmean(line["psnr"] for line in first))
    assert found["speed"] == pytest.approx(
        sum(line["seconds"] for line in first) / sum(line["seconds"] for line in second)
    )
    sides = found["reference"], found["other"]
    assert [(side["precision"], side["device"]) for side in sides] == [("32-true", "cpu"), ("bf16-mixed", "cpu")]
    assert [side["backend"] for side in sides] == [first[0]["backend"], second[0]["backend"]]
    assert not found["unfinished"]
    assert found["notes"] == []

    _, printed, _ = gibench("compare", *pair)
    assert "32-true" in printed
    assert "bf16-mixed" in printed
    assert signed(found["other"]["psnr"], 2) in printed
    assert f"{signed(difference['value'], 2)} [" in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_the_order_of_the_records_does_not_matter(gibench: Command, pair: tuple[Path, Path]) -> None:
    before = compared(gibench, *pair)
    rewrite(pair[1], lambda found: found[::-1])
    assert compared(gibench, *pair) == before


def test_what_is_recorded_of_an_unfinished_run_is_compared_and_said(gibench: Command, pair: tuple[Path, Path]) -> None:
    dropped = attacked(pair[1])[0]["update_id"]
    rewrite(pair[1], lambda found: [line for line in found if line["update_id"] != dropped])
    [found] = compared(gibench, *pair)
    assert found["unfinished"]
    assert found["difference"]["images"] == 5
    kept = [line["psnr"] for line in attacked(pair[0]) if line["update_id"] != dropped]
    assert found["reference"]["psnr"] == pytest.approx(statistics.fmean(kept))
    _, printed, _ = gibench("compare", *pair)
    assert "6 and 5 of 6 images are recorded, 5 are compared" in printed
    status, _, errors = gibench("compare", *pair, "--panel", pair[0].parent / "panel.json")
    assert status == 1
    assert "unfinished" in errors
    assert not (pair[0].parent / "panel.json").exists()


def test_floors_are_compared_only_where_they_are_all_there_is(gibench: Command, pair: tuple[Path, Path]) -> None:
    rewrite(pair[1], lambda found: [line for line in found if line["attack"].startswith("floor")])
    found = compared(gibench, *pair)
    assert {line["attack"] for line in lines(pair[1])} == {cell["attack"] for cell in found}
    content_free = [cell for cell in found if "prior alone" not in cell["attack"]]
    assert len(content_free) == 4
    assert all(cell["difference"]["value"] == pytest.approx(0, abs=1e-6) for cell in content_free)
    assert all(cell["speed"] is None for cell in content_free)
    _, printed, _ = gibench("compare", *pair)
    assert f"only in {pair[0]}" in printed.replace("\n", "")


def test_cells_that_do_not_belong_together_are_refused(
    gibench: Command, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def refusal(change: Callable[[Path], None]) -> str:
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(pair[1], other)
        change(other)
        status, _, errors = gibench("compare", pair[0], other)
        assert status == 1
        assert errors.count("\n") == 1
        return errors

    def settings(cell: dict[str, Any]) -> None:
        cell["configuration"]["attack"]["init_args"]["steps"] = 13

    assert "differ in configuration: attack.init_args.steps" in refusal(lambda folder: edit(folder, settings))
    weights = {"weights_sha256": "0"}
    assert "differ in victim: weights_sha256" in refusal(
        lambda folder: edit(folder, lambda cell: cell["victim"].update(weights))
    )
    assert "differ in data: seed" in refusal(lambda folder: edit(folder, lambda cell: cell["data"].update(seed=1)))
    assert "differ in threat_model: labels" in refusal(
        lambda folder: edit(folder, lambda cell: cell["threat_model"].update(labels="none"))
    )
    renamed = {"image_id": "another"}
    assert "different images" in refusal(
        lambda folder: rewrite(folder, lambda found: [line | renamed for line in found])
    )
    elsewhere = {"scenario": "elsewhere"}
    assert "in common" in refusal(lambda folder: rewrite(folder, lambda found: [line | elsewhere for line in found]))
    assert "does not describe it" in refusal(
        lambda folder: edit(folder, lambda cell: cell.update(scenario="elsewhere"))
    )
    assert "holds no run" in refusal(lambda folder: (folder / "manifest.json").unlink())


def test_what_results_do_not_depend_on_may_differ(gibench: Command, pair: tuple[Path, Path]) -> None:
    def other_engine(cell: dict[str, Any]) -> None:
        cell["configuration"]["attack"]["init_args"]["engine"] = {"class_path": "another"}
        cell["configuration"]["data"]["init_args"]["together"] = 3
        cell["configuration"]["client"]["init_args"]["new"] = 1

    edit(pair[1], other_engine)
    [found] = compared(gibench, *pair)
    assert found["notes"] == [f"{found['scenario']} x {found['attack']}: only one run knows client.init_args.new; "
                              "the versions of gibench differ."]  # fmt: skip


def test_the_panel_is_made_and_merged(gibench: Command, pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "panel.json"
    status, printed, errors = gibench("compare", *pair, "--panel", path)
    assert status == 0, errors
    [made] = Panel.model_validate_json(path.read_text()).panel
    [found] = compared(gibench, *pair)
    assert made.key == ("bf16-mixed", "cpu", "lenet")
    assert (made.low, made.high) == (found["difference"]["low"], found["difference"]["high"])
    assert made.verdict == judge(made.low, made.high)
    assert (made.tolerance, made.images, made.updates) == (TOLERANCE, 6, 6)
    assert f"bf16-mixed on cpu is {made.verdict}" in printed
    assert "--precision bf16-mixed" in made.other.command
    assert "--precision 32-true" in made.reference.command
    assert made.other.torch == json.loads((pair[1] / "manifest.json").read_text())["versions"]["torch"]

    elsewhere = made.model_copy(update={"device": "cuda"})
    stale = made.model_copy(update={"images": 3})
    path.write_text(Panel(panel=(elsewhere, stale)).model_dump_json())
    assert gibench("compare", *pair, "--panel", path)[0] == 0
    assert Panel.model_validate_json(path.read_text()).panel == (made, elsewhere)


def test_the_panel_refuses_what_is_no_mixed_precision_against_32_true(
    gibench: Command, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "panel.json"
    for folders in (pair[::-1], (pair[0], pair[0])):
        status, _, errors = gibench("compare", *folders, "--panel", path)
        assert status == 1
        assert "against 32-true" in errors
    path.write_text('{"panel": [{"precision": "bf16-mixed"}]}')
    before = path.read_text()
    status, _, errors = gibench("compare", *pair, "--panel", path)
    assert status == 1
    assert "is no panel" in errors
    assert path.read_text() == before


def test_two_attacks_on_one_architecture_do_not_share_an_entry(gibench: Command, suite: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(suite.read_text())
    tree["attacks"]["again"] = tree["attacks"]["ig"]
    tree["cells"] = [{"scenario": "lenet", "attacks": ["ig", "again"]}]
    suite.write_text(yaml.safe_dump(tree))
    for precision in ("32-true", "bf16-mixed"):
        out = tmp_path / precision
        status, _, errors = gibench("run", suite, "--out", out, "--precision", precision, "--limit", "2")
        assert status == 0, errors
    arguments = "compare", tmp_path / "32-true", tmp_path / "bf16-mixed"
    assert gibench(*arguments)[0] == 0
    status, _, errors = gibench(*arguments, "--panel", tmp_path / "panel.json")
    assert status == 1
    assert "one attack on each architecture" in errors
