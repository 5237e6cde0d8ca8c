"""Runs through the command line: what they write, how they resume, and what each kind of bad input says."""

import csv
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml

from gibench.records import read_records

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def table(folder: Path) -> list[dict[str, str]]:
    """The summary without its one column that time decides."""
    with (folder / "summary.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_a_suite_writes_records_manifest_summary_and_report(gibench: Command, suite: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, printed, _ = gibench("run", suite, "--out", out)
    assert status == 0
    assert "report.html" in printed

    rows = records(out)
    attacks = {(row["scenario"], row["attack"]) for row in rows}
    floors = {"floor: mean image", "floor: class mean", "floor: random image", "floor: nearest image (oracle)"}
    assert {attack for scenario, attack in attacks if scenario == "lenet"} == {
        *("ig", "ig (wrong update)", "floor: ig prior alone", "idlg", "bias"),
        *floors,
    }
    assert {attack for scenario, attack in attacks if scenario == "mlp"} == {"bias", *floors}
    assert len(rows) == 6 * len(attacks)
    needed = "scenario, attack, image_id, update_id, status, psnr, ssim, mse, lpips_alex, lpips_vgg, objective, seed"
    assert set(f"{needed}, gradient_evaluations, seconds".split(", ")) <= set(rows[0])

    by_attack = {key: [row for row in rows if (row["scenario"], row["attack"]) == key] for key in attacks}
    assert all(row["psnr"] > 60 for row in by_attack["mlp", "bias"])
    assert all(row["label"] == row["label_inferred"] for row in by_attack["lenet", "idlg"])
    assert all(row["gradient_evaluations"] == 24 for row in by_attack["lenet", "ig"])
    assert all(row["psnr_oracle"] >= row["psnr"] - 1e-9 for row in by_attack["lenet", "ig"])
    refused = by_attack["lenet", "bias"]
    assert {row["status"] for row in refused} == {"refused"}
    assert "fully connected" in refused[0]["reason"]
    floor = {row["image_id"]: row["psnr"] for row in by_attack["lenet", "floor: mean image"]}
    assert all(row["psnr"] == pytest.approx(floor[row["image_id"]], abs=1e-4) for row in refused)

    manifest = json.loads((out / "manifest.json").read_text())
    cell = next(cell for cell in manifest["cells"] if cell["attack"] == "ig")
    assert cell["threat_model"]["labels"] == "ordered"
    assert cell["victim"]["architecture"] == "lenet"
    assert cell["configuration"]["attack"]["init_args"]["steps"] == 12
    assert set(cell["data"]["split_hashes"]) == {"prior", "tune", "score"}
    assert cell["gradient_evaluations"] == 6 * 24
    assert cell["peak_memory_bytes"] > 0
    assert manifest["versions"]["torch"]
    assert manifest["finished"]

    page = (out / "report.html").read_text()
    assert "data:image/gif" in page
    assert len(list((out / "reconstructions").rglob("*.safetensors"))) == len(rows)


def manifest_of(out: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return tree


def test_the_same_command_again_computes_nothing_and_changes_no_table(
    gibench: Command, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, which makes the victims' weights float64 while it runs."""
    out = tmp_path / "run"
    command = ("run", suite, "--out", out, "--precision", "64-true")
    gibench(*command, "--limit", 2)
    before, lines = table(out), (out / "records.jsonl").read_bytes()
    gibench(*command, "--limit", 2)
    assert (out / "records.jsonl").read_bytes() == lines
    assert table(out) == before
    assert "--limit 2" in manifest_of(out)["command"]
    monkeypatch.setattr("gibench.runs.manifest.commit", lambda: "another")
    assert gibench(*command, "--limit", 4)[0] == 0
    assert (out / "records.jsonl").read_bytes().startswith(lines)
    # What reproduces it is the command that computed the last of it; another version of the code is noted once.
    assert "--limit 4" in manifest_of(out)["command"]
    assert [part["commit"] for part in manifest_of(out)["continued"]] == ["another"]
    gibench(*command, "--limit", 5)
    assert len(manifest_of(out)["continued"]) == 1
    assert {row["update_id"] for row in json_rows(lines)} < {row["update_id"] for row in records(out)}
    victims = [json.dumps(cell["victim"]) for cell in manifest_of(out)["cells"] if cell["scenario"] == "lenet"]
    assert len(set(victims)) == 1


def json_rows(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def test_a_run_killed_three_times_ends_in_the_same_table(gibench: Command, suite: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments, once with a torn last line, then the same command to the end."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert gibench("run", suite, "--out", whole)[0] == 0
    chance = random.Random(7)  # noqa: S311 - not for secrets
    script = (
        "import gibench.metrics.image_quality as q; q.load_network = lambda net, download: 'left out of this test.';"
        "from gibench.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    total = len(records(whole))
    for _ in range(3):
        path = killed / "records.jsonl"
        seen = len(path.read_bytes().splitlines()) if path.exists() else 0
        goal = seen + chance.randint(1, max(1, (total - seen) // 2))
        process = subprocess.Popen(
            [sys.executable, "-c", script, "run", str(suite), "--out", str(killed)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and len(path.read_bytes().splitlines()) >= goal:
                time.sleep(chance.random() * 0.2)
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with (killed / "records.jsonl").open("ab") as file:
        file.write(b'{"scenario": "lenet", "attack": "ig", "ima')
    status, printed, _ = gibench("run", suite, "--out", killed)
    assert status == 0
    assert "torn" in printed
    assert len(records(killed)) == total
    assert table(killed) == table(whole)
    keys = [(row["scenario"], row["attack"], row["update_id"], row["position"]) for row in records(killed)]
    assert len(set(keys)) == len(keys)


def test_other_settings_in_the_same_folder_are_refused(gibench: Command, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert gibench("run", single, "--out", out, "--limit", 2)[0] == 0
    before = (out / "records.jsonl").read_bytes()
    status, _, errors = gibench("run", single, "--out", out, "--limit", 2, "--attack.steps", 5)
    assert status == 1
    assert "other settings" in errors
    assert (out / "records.jsonl").read_bytes() == before


def test_records_of_another_victim_are_not_continued(gibench: Command, single: Path, tmp_path: Path) -> None:
    """Weights behind the same path may have changed since."""
    out = tmp_path / "run"
    assert gibench("run", single, "--out", out, "--limit", 2)[0] == 0
    manifest = json.loads((out / "manifest.json").read_text())
    for cell in manifest["cells"]:
        cell["victim"]["weights_sha256"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(manifest))
    status, _, errors = gibench("run", single, "--out", out, "--limit", 2)
    assert status == 1
    assert "another victim" in errors


def test_overrides_replace_settings_and_attacks(gibench: Command, single: Path, tmp_path: Path) -> None:
    gibench("run", single, "--out", tmp_path / "a", "--limit", 2, "--attack.steps=3", "--attack.restarts=1")
    ig = [row for row in records(tmp_path / "a") if row["attack"] == "inverting_gradients"]
    assert {row["gradient_evaluations"] for row in ig} == {3.0}
    gibench("run", single, "--out", tmp_path / "b", "--limit", 2, "--attack", "gibench.attacks.dlg", "--attack.steps=1")
    assert "dlg" in {row["attack"] for row in records(tmp_path / "b")}


def test_double_precision_runs(gibench: Command, single: Path, tmp_path: Path) -> None:
    gibench("run", single, "--out", tmp_path / "run", "--limit", 2, "--precision", "64-true")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["cells"][0]["precision"] == "64-true"
    assert torch.get_default_dtype() == torch.float32


def test_print_config_is_complete_and_runs_nothing(gibench: Command, suite: Path, tmp_path: Path) -> None:
    status, printed, _ = gibench("run", suite, "--print-config", "--out", tmp_path / "run")
    assert status == 0
    resolved = yaml.safe_load(printed)
    assert resolved["lenet x ig"]["attack"]["init_args"]["rate"] == 0.1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nowhere.yaml"], "no configuration"),
        (["run", "SUITE", "--size", "huge"], "size 'huge'"),
        (["run", "SUITE", "--limit", "0"], "--limit"),
        (["run", "SUITE", "--attack", "gibench.attacks.dlg"], "suite names its attacks"),
        (["run", "SINGLE", "--attack", "gibench.attacks.nope"], "nope"),
        (["run", "SINGLE", "--attack.stepz", "3"], "stepz"),
        (["run", "SINGLE", "--attack.steps", "many"], "steps"),
        (["run", "SINGLE", "--attack.steps", "0"], "steps"),
        (["run", "SINGLE", "--data.sampler", "sorted"], "sampler"),
        (["run", "SINGLE", "--data.updates", "100000"], "updates"),
        (["run", "SINGLE", "--data", "gibench.data.CIFAR10", "--data.root", "EMPTY"], "CIFAR10 is not in"),
        (["run", "SINGLE", "--client.threat_model.labels", "none"], "inverting_gradients needs threat_model.labels"),
        (["run", "SINGLE", "--limits", "3"], "unknown option '--limits'"),
        (["run", "SINGLE", "--attack.steps"], "no value"),
        (["run", "SINGLE", "--client.threat_model.update", "fedavg"], "update"),
        (["run", "SINGLE", "--client.victim.num_classes", "2"], "classes"),
        (["run", "SINGLE", "--client.victim.image_shape", "[3, 16, 16]"], "shape"),
        (["run", "SINGLE", "--attack.memory_gib", "0.0000001"], "memory_gib"),
        (["run", "SINGLE", "--logger", "tensorboard"], "wandb"),
        (["run", "SINGLE", "--out", "FILE/run"], "another folder"),
        (["fit", "SINGLE"], "client"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line(
    gibench: Command, suite: Path, single: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    names = {"SUITE": suite, "SINGLE": single, "EMPTY": tmp_path / "empty", "FILE/run": tmp_path / "file" / "run"}
    out = [] if "--out" in arguments else ["--out", tmp_path / "run"]
    extra = out if arguments[0] == "run" else []
    status, _, errors = gibench(*[names.get(word, word) for word in arguments], *extra)
    assert status == 1
    assert errors.startswith("gibench: ")
    assert errors.count("\n") == 1, errors
    assert words in errors
    assert "Traceback" not in errors


def test_a_victim_without_second_derivatives_is_refused_before_any_attack(
    gibench: Command, single: Path, tmp_path: Path
) -> None:
    victim = {
        "class_path": "gibench.victims.by_path",
        "init_args": {"path": "torchvision.models.mobilenet_v3_small", "image_shape": [3, 32, 32], "num_classes": 10},
    }
    tree = yaml.safe_load(single.read_text())
    tree["client"]["init_args"]["victim"] = victim
    tree["client"]["init_args"]["threat_model"]["batch_norm"] = "eval"
    single.write_text(yaml.safe_dump(tree))
    status, _, errors = gibench("run", single, "--out", tmp_path / "run", "--limit", 2)
    assert status == 1
    assert "hardsigmoid" in errors


@pytest.mark.parametrize("arguments", [["nonsense"], ["doctor", "--nonsense"], ["run"], []], ids=" ".join)
def test_a_wrong_command_line_is_one_clear_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    from gibench.cli import main

    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("gibench: ")
    assert errors.count("\n") == 1


def test_an_interrupt_says_how_to_go_on(gibench: Command, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, _, errors = gibench("run", single, "--out", out, "--limit", 2, "--attack", "helpers.Interrupted")
    assert status == 130
    assert "continues" in errors
    assert {row["attack"].split(":")[0] for row in records(out)} == {"floor"}


def test_sigterm_stops_a_run_as_an_interrupt_does(gibench: Command, single: Path, tmp_path: Path) -> None:
    """A scheduler's way to stop; the attack sends it to its own process."""
    before = signal.getsignal(signal.SIGTERM)
    out = tmp_path / "run"
    status, _, errors = gibench("run", single, "--out", out, "--limit", 2, "--attack", "helpers.Terminated")
    assert status == 130
    assert "continues" in errors
    assert signal.getsignal(signal.SIGTERM) == before


def test_debug_shows_the_traceback(gibench: Command) -> None:
    from gibench.errors import ConfigurationError

    with pytest.raises(ConfigurationError):
        gibench("run", "nowhere.yaml", "--debug")


def test_weights_and_biases_logs_offline_without_an_account(gibench: Command, single: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    status, _, errors = gibench(
        "run", single, "--out", out, "--limit", 2, "--attack.steps=1", "--logger", "wandb-offline"
    )
    assert status == 0, errors
    wandb.finish()  # as the end of the process would
    [log] = out.glob("wandb/offline-run-*/*.wandb")
    own = [record for record in read_records(out / "records.jsonl") if record.attack == "inverting_gradients"]
    name = f"{own[0].scenario}/{own[0].attack}"
    end = time.monotonic() + 60  # a process of its own writes the file
    while f"{name}/psnr" not in (logged := read_back(log)) and time.monotonic() < end:
        time.sleep(0.5)
    assert logged[f"{name}/psnr"] == pytest.approx(sum(record.psnr for record in own) / len(own))
    table = json.loads((log.parent / "files" / logged[f"{name}/images/path"]).read_text())
    column = table["columns"].index("psnr")
    assert [row[column] for row in table["data"]] == [record.psnr for record in own]
    assert logged[f"{name}/pictures/count"] == len(own)
    assert (logged[f"{name}/pictures/width"], logged[f"{name}/pictures/height"]) == (64, 32)  # both side by side
    for path in logged[f"{name}/pictures/filenames"]:
        assert (log.parent / "files" / path).read_bytes()[:4] == b"\x89PNG"


def read_back(log: Path) -> dict[str, Any]:
    """The last value of each key that an offline run of Weights & Biases holds."""
    from wandb.proto.wandb_internal_pb2 import Record as Logged

    found: dict[str, Any] = {}
    for content in written(log.read_bytes()):
        logged = Logged()
        logged.ParseFromString(content)
        for item in logged.history.item:
            found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return found


def written(log: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    place, parts = 7, b""
    while place + 7 <= len(log):
        if (left := 2**15 - place % 2**15) < 7:
            place += left  # a header does not fit into the rest of a block
            continue
        length, kind = struct.unpack("<HB", log[place + 4 : place + 7])
        parts += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""
