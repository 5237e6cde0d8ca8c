"""From a finished run to a verified entry and a page, by the commands alone, on a real run of two attacks."""

import copy
import hashlib
import json
import shutil
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from generators.card import find
from gibench.cli import main
from gibench.errors import ConfigurationError
from leaderboard.conversion import portable, portable_command
from leaderboard.exports import BEGIN, END
from leaderboard.trust import check_trusted

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SUITE = {
    "name": "tiny",
    "metrics": {"lpips": False},
    "scenarios": {
        "photographs-b1": {
            "data": {
                "class_path": "gibench.data.Photographs",
                "init_args": {"batch_size": 1, "updates": 6, "together": 6},
            },
            "client": {
                "class_path": "gibench.clients.FedSGD",
                "init_args": {
                    "victim": {"class_path": "gibench.victims.lenet"},
                    "threat_model": {"victim": "initial", "batch_norm": "absent"},
                },
            },
        }
    },
    "attacks": {
        "ig": {"class_path": "gibench.attacks.inverting_gradients", "init_args": {"steps": 4, "signed": False}},
        "bias": {"class_path": "gibench.attacks.BiasAttack"},
        "labels": {
            "class_path": "gibench.attacks.LabelInference",
            "init_args": {"labels": {"class_path": "gibench.labels.IDLG"}},
        },
    },
    "cells": [{"scenario": "photographs-b1", "attacks": ["ig", "bias", "labels"], "wrong_update": ["ig"]}],
}
MEASURED = {
    "weights": "0" * 64,
    "seconds": 50.0,
    "cpu_seconds": 40.0,
    "seconds_before": 10.0,
    "total": 60.0,
    "images": 1000,
    "steps": 7,
    "examples": 448,
    "devices": ["cpu"],
}
FOLDER = Path("photographs", "initial_bn-absent_labels-ordered", "photographs-b1")

Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run from a clean commit."""
    folder = tmp_path_factory.mktemp("leaderboard")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SUITE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gibench.runs.manifest.commit", lambda: COMMIT)
        assert main(["run", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def board(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call `gibench leaderboard ...` on a folder of results of its own; return its status and what it printed."""

    def call(command: str, *words: Any) -> tuple[int, str]:
        capsys.readouterr()
        where = [] if command == "verify" else ["--results", str(tmp_path / "results")]
        status = main(["leaderboard", command, *map(str, words), *where])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return call


def test_from_a_run_to_a_verified_entry_and_a_page(run: Path, board: Command, tmp_path: Path) -> None:
    status, printed = board("add", run, "--by", "A. Tester")
    assert (status, printed.count("new: ")) == (0, 3)
    file = tmp_path / "results" / FOLDER / "ig.json"
    entry = json.loads(file.read_text())
    assert len(entry["images"]) == 6
    assert set(entry["floors"]) >= {"mean image", "class mean", "random image", "nearest image (oracle)", "prior alone"}
    assert set(entry["controls"]) == {"wrong update"}
    assert entry["attack"]["family"] == "handcrafted"
    assert entry["runs"][0]["commit"] == COMMIT
    assert entry["runs"][0]["command"] == "gibench run tiny.yaml"
    assert str(tmp_path.parent) not in file.read_text(), "a path of this machine"
    assert board("validate")[0] == 0
    status, printed = board("verify", file, "--images", 3, "--by", "B. Tester")
    assert status == 0, printed
    assert "image by image: 3 of 3 images agree" in printed
    assert board("verify", file, "--rescore", "--by", "B. Tester")[0] == 0
    found = json.loads(file.with_suffix(".verified.json").read_text())["verifications"]
    assert [each["kind"] for each in found] == ["re-run", "re-score"]
    assert board("validate")[0] == 0
    status, printed = board("build", "--out", tmp_path / "page")
    assert status == 0
    assert "✓ re-run" in (tmp_path / "page" / "index.html").read_text()


def test_the_refused_attack_scores_as_the_mean_image(run: Path, board: Command, tmp_path: Path) -> None:
    board("add", run, "--by", "A. Tester", "--attack", "bias")
    entry = json.loads((tmp_path / "results" / FOLDER / "bias.json").read_text())
    assert {image["status"] for image in entry["images"]} == {"refused"}
    assert [image["psnr"] for image in entry["images"]] == pytest.approx(entry["floors"]["mean image"]["psnr"])


def test_adding_twice_writes_once_and_another_result_needs_a_reason(run: Path, board: Command, tmp_path: Path) -> None:
    board("add", run, "--by", "A. Tester")
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()}
    status, printed = board("add", run, "--by", "C. Tester")
    assert (status, printed.count("there already: ")) == (0, 3)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    text = (other / "records.jsonl").read_text()
    (other / "records.jsonl").write_text(text.replace('"label_inferred":null', '"label_inferred":1'))
    status, printed = board("add", other, "--by", "C. Tester", "--attack", "ig")
    assert status == 1
    assert "never edited" in printed
    assert {path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()} == before
    assert board("add", other, "--by", "C. Tester", "--attack", "ig", "--supersede", "labels were missing")[0] == 0
    assert board("validate")[0] == 0
    assert json.loads((tmp_path / "results" / FOLDER / "ig.r2.json").read_text())["supersedes"]["revision"] == 1


def test_names_of_the_board_are_given_to_a_run(run: Path, board: Command, tmp_path: Path) -> None:
    chosen = ("--scenario", "photographs-b1=tiny-b1", "--attack", "ig=ig-short", "--attack", "labels")
    status, printed = board("add", run, "--by", "A. Tester", *chosen)
    assert (status, printed.count("new: ")) == (0, 2), printed
    folder = tmp_path / "results" / FOLDER.parent / "tiny-b1"
    assert sorted(path.name for path in folder.glob("*.json")) == ["ig-short.json", "labels.json"]
    entry = json.loads((folder / "ig-short.json").read_text())
    assert set(entry["controls"]) == {"wrong update"}
    assert "prior alone" in entry["floors"]
    assert board("validate")[0] == 0
    status, printed = board("verify", folder / "ig-short.json", "--images", 2)
    assert status == 0, printed
    for odd in ("ig=", "=ig"):
        status, printed = board("add", run, "--by", "A. Tester", "--attack", odd)
        assert status == 1
        assert "NAME or NAME=PUBLISHED" in printed


def test_a_run_of_two_versions_of_the_code_is_not_published(run: Path, board: Command, tmp_path: Path) -> None:
    later = [{"at": "2026-01-01T00:00:00+00:00", "commit": "f" * 40, "versions": {}}]
    status, printed = board("add", change_manifest(run, tmp_path / "run", continued=later), "--by", "A. Tester")
    assert status == 1
    assert "another version of the code" in printed


def test_weights_are_those_of_the_run(run: Path, board: Command, tmp_path: Path) -> None:
    name = "vae_photographs_tiny.safetensors"
    digest = hashlib.sha256(find(name).read_bytes()).hexdigest()
    cells = json.loads((run / "manifest.json").read_text())["cells"]
    for cell in cells:
        generator = {"class_path": "generators.load_generator", "init_args": {"path": name}}
        cell["configuration"]["attack"] = {"class_path": "gibench.attacks.gias", "init_args": {"generator": generator}}
        for model in (cell["threat_model"], cell["configuration"]["client"]["init_args"]["threat_model"]):
            model["prior_data"] = "in_distribution"
        cell["offline"] = [MEASURED | {"weights": digest}]
        cell["attack_weights"] = ["0" * 64]
    status, printed = board(
        "add", change_manifest(run, tmp_path / "other", cells=cells), "--by", "A.", "--attack", "ig"
    )
    assert status == 1
    assert "not the file of the run any more" in printed
    for cell in cells:
        cell["attack_weights"] = [digest]
    same = change_manifest(run, tmp_path / "same", cells=cells)
    status, printed = board("add", same, "--by", "A. Tester", "--attack", "ig")
    assert status == 0, printed
    [file] = (tmp_path / "results").rglob("ig.json")
    assert json.loads(file.read_text())["runs"][0]["weights"] == {name: digest}


def change_manifest(run: Path, target: Path, **values: Any) -> Path:
    shutil.copytree(run, target)
    manifest = json.loads((target / "manifest.json").read_text())
    (target / "manifest.json").write_text(json.dumps(manifest | values))
    return target


@pytest.mark.parametrize(
    ("values", "complaint"),
    [({"finished": None}, "is not finished"), ({"commit": COMMIT + "-dirty"}, "changed code")],
)
def test_unfinished_and_unclean_runs_are_refused(
    run: Path, board: Command, tmp_path: Path, values: dict[str, Any], complaint: str
) -> None:
    status, printed = board("add", change_manifest(run, tmp_path / "copy", **values), "--by", "A. Tester")
    assert status == 1
    assert complaint in printed
    assert not (tmp_path / "results").exists()


def test_a_run_with_a_wrong_score_is_refused_and_nothing_is_written(run: Path, board: Command, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    lines = [json.loads(line) for line in (tmp_path / "copy" / "records.jsonl").read_text().splitlines()]
    next(line for line in lines if line["attack"] == "ig")["psnr"] = 60.0
    (tmp_path / "copy" / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, printed = board("add", tmp_path / "copy", "--by", "A. Tester")
    assert status == 1
    assert "cannot be published" in printed
    assert not (tmp_path / "results").exists()


def test_a_forged_score_is_not_reproduced(run: Path, board: Command, tmp_path: Path) -> None:
    """Scores that a run would not give, in a file whose parts agree: running it again is what finds them."""
    board("add", run, "--by", "A. Tester", "--attack", "ig")
    file = tmp_path / "results" / FOLDER / "ig.json"
    entry = json.loads(file.read_text())
    entry["pictures"] = []
    for image in entry["images"]:
        image["mse"] = float(f"{image['mse'] / 4:.6g}")
        image["psnr"] += 6.0206
    file.write_text(json.dumps(entry))
    assert board("validate", file)[0] == 0
    status, printed = board("verify", file, "--images", 2)
    assert status == 1
    assert "not reproduced: 0 of 2" in printed


def test_labels_are_verified_as_labels(run: Path, board: Command, tmp_path: Path) -> None:
    board("add", run, "--by", "A. Tester", "--attack", "labels")
    file = tmp_path / "results" / FOLDER / "labels.json"
    status, printed = board("verify", file, "--images", 4)
    assert status == 0
    assert "image by image: 4 of 4 images agree" in printed
    assert "label" in printed
    entry = json.loads(file.read_text())
    for image in entry["images"]:
        image["label_inferred"] = (image["label_inferred"] + 1) % 5
    file.write_text(json.dumps(entry))
    status, printed = board("verify", file, "--images", 4, "--groups")
    assert status == 1
    assert "not reproduced: 0 of 4" in printed


def test_runs_of_other_victims_become_one_entry(run: Path, board: Command, tmp_path: Path) -> None:
    """Another seed of the victim, the same batches: one row whose images know their run."""
    suite = copy.deepcopy(SUITE)
    client = suite["scenarios"]["photographs-b1"]["client"]["init_args"]  # type: ignore[index]
    client["victim"] = {"class_path": "gibench.victims.lenet", "init_args": {"seed": 1}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(suite))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gibench.runs.manifest.commit", lambda: COMMIT)
        assert main(["run", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "seed1")]) == 0
    status, printed = board("add", run, tmp_path / "seed1", "--by", "A. Tester", "--attack", "ig")
    assert status == 0, printed
    file = tmp_path / "results" / FOLDER / "ig.json"
    entry = json.loads(file.read_text())
    assert [image["run"] for image in entry["images"]] == [0] * 6 + [1] * 6
    assert len({each["victim"]["weights_sha256"] for each in entry["runs"]}) == 2
    assert board("validate")[0] == 0
    status, printed = board("verify", file, "--images", 4)
    assert status == 0
    assert "of 4 images agree" in printed
    assert board("build", "--out", tmp_path / "page")[0] == 0
    status, printed = board("add", run, run, "--by", "A. Tester", "--attack", "bias")
    assert status == 1
    assert "the same victim" in printed


def test_an_attack_of_ones_own_is_described_in_a_file(run: Path, board: Command, tmp_path: Path) -> None:
    own = change_manifest(run, tmp_path / "own")
    text = (own / "manifest.json").read_text().replace("gibench.attacks.inverting_gradients", "mine.attacks.best")
    (own / "manifest.json").write_text(text)
    status, printed = board("add", own, "--by", "A. Tester", "--attack", "ig")
    assert status == 1
    assert "mine.attacks.best is not known here" in printed
    about = tmp_path / "about.yaml"
    said = {
        "title": "Mine",
        "family": "generative",
        "fidelity": "own",
        "offline_seconds": 60,
        "offline_what": "training",
    }
    about.write_text(yaml.safe_dump({"ig": {**said, "surprise": 1}}))
    status, printed = board("add", own, "--by", "A. Tester", "--attack", "ig", "--about", about)
    assert status == 1
    assert "unknown key 'surprise'" in printed
    about.write_text(yaml.safe_dump({"ig": {**said, "family": "magic"}}))
    assert board("add", own, "--by", "A. Tester", "--attack", "ig", "--about", about)[0] == 1
    about.write_text(yaml.safe_dump({"ig": said}))
    assert board("add", own, "--by", "A. Tester", "--attack", "ig", "--about", about)[0] == 0
    entry = json.loads((tmp_path / "results" / FOLDER / "ig.json").read_text())
    assert (entry["attack"]["title"], entry["attack"]["family"]) == ("Mine", "generative")
    assert entry["runs"][0]["cost"]["offline_seconds"] == 60
    status, printed = board("verify", tmp_path / "results" / FOLDER / "ig.json")
    assert status == 1
    assert "--trust" in printed


def test_what_was_trained_is_stated_or_measured(run: Path, board: Command, tmp_path: Path) -> None:
    add = ("--by", "A. Tester", "--attack", "ig")

    def trained(name: str, costs: list[dict[str, Any]]) -> Path:
        cells = json.loads((run / "manifest.json").read_text())["cells"]
        cells = [cell | {"attack_weights": ["0" * 64], "offline": costs} for cell in cells]
        return change_manifest(run, tmp_path / name, cells=cells)

    for name, costs in {
        "older": [],
        "elsewhere": [{"weights": "0" * 64, "seconds": None}],
        "tuned": [MEASURED | {"seconds_before": None, "total": None}],
    }.items():
        status, printed = board("add", trained(name, costs), *add)
        assert status == 1
        assert "no cost.json beside them" in printed
    assert board("add", trained("measured", [MEASURED]), *add)[0] == 0
    file = tmp_path / "results" / FOLDER / "ig.json"
    cost = json.loads(file.read_text())["runs"][0]["cost"]
    assert cost["offline_seconds"] == 60
    assert cost["offline_what"] == (
        "50 s (40 s of processors) of training on 1,000 images, 448 examples in 7 steps, on cpu, from weights of 10 s"
    )
    shutil.rmtree(tmp_path / "results")
    about = tmp_path / "about.yaml"
    about.write_text(yaml.safe_dump({"ig": {"offline_seconds": 5, "offline_what": "by hand"}}))
    status, printed = board("add", tmp_path / "older", *add, "--about", about)
    assert status == 0, printed
    cost = json.loads(file.read_text())["runs"][0]["cost"]
    assert (cost["offline_seconds"], cost["offline_what"]) == (5, "by hand")


def test_the_page_is_served_on_this_machine_alone(run: Path, board: Command, tmp_path: Path) -> None:
    board("add", run, "--by", "A. Tester")
    seen: list[tuple[str, bytes]] = []
    visits: list[threading.Thread] = []

    def look(address: str) -> None:
        with urllib.request.urlopen(address) as answer:  # noqa: S310 - the server of the line below
            seen.append((address, answer.read()))

    def visit(address: str) -> None:
        visits.append(threading.Thread(target=look, args=(address,)))
        visits[0].start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("webbrowser.open", visit)
        patch.setattr("http.server.ThreadingHTTPServer.serve_forever", lambda server: [server.handle_request()])
        assert board("serve", "--out", tmp_path / "page", "--port", 0)[0] == 0
    visits[0].join(timeout=20)
    [(address, content)] = seen
    assert address.startswith("http://127.0.0.1:")
    assert b"gibench leaderboard" in content


def test_another_victim_is_not_verified(run: Path, board: Command, tmp_path: Path) -> None:
    board("add", run, "--by", "A. Tester", "--attack", "ig")
    file = tmp_path / "results" / FOLDER / "ig.json"
    file.write_text(
        file.read_text().replace(json.loads(file.read_text())["runs"][0]["victim"]["weights_sha256"], "f" * 64)
    )
    status, printed = board("verify", file, "--images", 1)
    assert status == 1
    assert "weights are not those of the record" in printed
    status, printed = board("verify", file, "--images", 1, "--attack.steps=3")
    assert status == 1
    assert "the attack is the record's" in printed


@pytest.mark.parametrize(
    "part",
    [
        {"class_path": "os.system"},
        {"class_path": "subprocess.Popen", "init_args": {"args": "touch x"}},
        {"class_path": "gibench.victims.by_path", "init_args": {"path": "builtins.eval"}},
        {"class_path": "gibench.attacks.dlg", "init_args": {"search": "shutil.rmtree"}},
        {"class_path": "gibench.runs._private.thing"},
        {"class_path": "gibench.attacks.dlg", "init_args": {"deep": [{"class_path": "os.remove"}]}},
    ],
)
def test_other_peoples_code_is_not_run_without_asking(part: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="--trust"):
        check_trusted({"data": {}, "client": {}, "attack": part})


def test_our_own_code_is_run_without_asking() -> None:
    check_trusted(
        {
            "data": {"class_path": "gibench.data.Arrays", "init_args": {"path": "images.npz"}},
            "client": {"class_path": "gibench.victims.by_path", "init_args": {"path": "torchvision.models.resnet18"}},
            "attack": {"class_path": "gibench.attacks.dlg", "init_args": {"line_search": "none", "tv": 0.1}},
        }
    )


def test_the_readme_block_is_filled_between_its_marks(run: Path, board: Command, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    board("add", run, "--by", "A. Tester")
    assert board("build", "--out", tmp_path / "page", "--readme", readme)[0] == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n**Initial weights · labels known · one gradient · no defense**\n\n| scen")
    assert text.endswith(f"|\n{END}\nafter\n")
    readme.write_text("no marks")
    assert board("build", "--out", tmp_path / "page", "--readme", readme)[0] == 1


def test_options_that_are_not_there_are_refused(board: Command, tmp_path: Path) -> None:
    assert board("build", "--colour", "red")[0] == 1
    assert board("validate", tmp_path / "missing.json")[0] == 1


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (
            "gibench run suites/first.yaml --size small --out /tmp/somewhere",
            "gibench run suites/first.yaml --size small",
        ),
        ("gibench run mine.yaml --out=/tmp/me/runs --limit 20", "gibench run mine.yaml --limit 20"),
        ("gibench run /tmp/me/mine.yaml --logger wandb --attack.tv 0.01", "gibench run mine.yaml --attack.tv 0.01"),
        ("gibench run a.yaml --data.path C:\\\\data\\\\x.npz", "gibench run a.yaml --data.path x.npz"),
    ],
)
def test_what_is_published_holds_no_path_of_a_machine(line: str, kept: str) -> None:
    assert portable_command(line) == kept
    tree = {"root": "/data", "path": "/data/images.npz", "deep": [{"weights": "/x/lenet.safetensors"}], "tv": 0.1}
    assert portable(tree) == {"root": None, "path": "images.npz", "deep": [{"weights": "lenet.safetensors"}], "tv": 0.1}
