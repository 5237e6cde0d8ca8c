"""Records on disk: what counts is kept, what a kill tears is set aside, what is damaged is named."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gibench.errors import RecordError, StorageError
from gibench.records import RecordFile, RunFolder, folder_name, read_manifest
from gibench.types import Record


def record(update: int = 0, position: int = 0, **changes: object) -> Record:
    values = {
        "scenario": "s",
        "attack": "a",
        "image_id": f"image/{update}/{position}",
        "update_id": f"update-{update}",
        "position": position,
        "status": "ok",
        "psnr": 12.5,
        "ssim": 0.5,
        "mse": 0.05,
        "lpips_alex": None,
        "lpips_vgg": None,
        "objective": 0.1,
        "label": 3,
        "label_inferred": None,
        "seed": 1,
        "gradient_evaluations": 10.0,
        "seconds": 0.5,
    }
    return Record.model_validate({**values, **changes})


def test_what_is_appended_is_read_again_and_never_written_twice(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([record(0), record(1)])
    file.append([record(1), record(2)])
    again = RecordFile(tmp_path / "records.jsonl")
    assert again.records == [record(0), record(1), record(2)]
    assert again.finished("s", "a", batch_size=1) == {"update-0", "update-1", "update-2"}
    assert again.finished("s", "other", batch_size=1) == set()


def test_an_update_is_finished_with_its_last_image(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([record(0, 0), record(0, 1), record(1, 0)])
    assert file.finished("s", "a", batch_size=2) == {"update-0"}


def test_records_of_older_versions_are_read(tmp_path: Path) -> None:
    """What the errors look like was not recorded then; neither were the precision and its parity."""
    path = tmp_path / "records.jsonl"
    old = record(0).model_dump()
    for name in ("psnr_mixture", "psnr_class_mean", "bad_pixels", "tv_ratio", "identified", "precision", "parity"):
        del old[name]
    path.write_text(json.dumps(old) + "\n")
    assert RecordFile(path).records == [record(0)]


@settings(max_examples=30)
@given(st.integers(1, 400))
def test_a_kill_at_any_byte_loses_at_most_the_lines_in_flight(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        RecordFile(path).append([record(0)])
        whole = path.stat().st_size
        RecordFile(path).append([record(1)])
        content = path.read_bytes()
        path.write_bytes(content[: min(whole + cut, len(content))])
        file = RecordFile(path)
        assert file.records[0] == record(0)
        assert len(file.records) == (2 if whole + cut >= len(content) else 1)
        file.append([record(1), record(2)])
        assert RecordFile(path).records == [record(0), record(1), record(2)]
        torn = path.with_suffix(".jsonl.torn")
        assert (path.read_bytes() + (torn.read_bytes() if torn.exists() else b"")).startswith(content[:whole])


@pytest.mark.parametrize(
    "line", ["not json", "{}", '{"scenario": 3}', json.dumps({**record().model_dump(), "surprise": 1})]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(record(0).model_dump_json() + "\n" + line + "\n")
    with pytest.raises(RecordError, match="line 2 is no record"):
        RecordFile(path)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="another folder"):
        RunFolder(tmp_path / "file" / "run")


def test_a_full_disk_is_named_and_keeps_what_is_there(tmp_path: Path) -> None:
    """/dev/full fails every write with "no space left on device"."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, which this system lacks")
    file = RecordFile(tmp_path / "records.jsonl")
    file.append([record(0)])
    file.path = Path("/dev/full")
    with pytest.raises(StorageError, match=r"[Nn]o space"):
        file.append([record(1)])
    assert RecordFile(tmp_path / "records.jsonl").records == [record(0)]


def test_tensors_and_manifest_round_trip(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_manifest(tmp_path) is None
    folder.save_manifest({"name": "x", "cells": []})
    assert read_manifest(tmp_path) == {"name": "x", "cells": []}
    folder.save_tensors({"images": torch.eye(3)}, "reconstructions", "a/b", "c (d)", "u")
    assert torch.equal(folder.load_tensors("reconstructions", "a/b", "c (d)", "u")["images"], torch.eye(3))
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RecordError, match="manifest"):
        read_manifest(tmp_path)


@given(st.text(max_size=30))
def test_folder_names_stay_inside_the_folder(name: str) -> None:
    component = folder_name(name)
    assert component
    assert component not in (".", "..")
    assert Path(component).name == component
