"""From the records of a run to the values of an entry: rounded, named for paths, without what belongs to a machine."""

import hashlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Any

from safetensors.torch import load_file

from generators.card import find as find_generator
from gibench import __version__
from gibench.errors import RecordError, WeightsError
from gibench.records import read_manifest, read_records
from gibench.report.pictures import picture_path
from gibench.report.summary import kind_of
from gibench.runs.configuration import digest
from gibench.types import Record, ThreatModel
from gibench.victims.weights import locate
from leaderboard import offline, pictures
from leaderboard.methods import describe
from leaderboard.schema import SCHEMA_VERSION

_WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt")
_OF_THE_MACHINE = ("--out", "--logger", "--devices", "--nodes")


class Run:
    """A finished run folder, for reading.

    Raises:
        RecordError: when the folder holds no finished run, or one of changed code.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        records = read_records(folder / "records.jsonl")
        if manifest is None or not records:
            raise RecordError(f"{folder} holds no run with records; pass the folder that `gibench run` wrote (--out).")
        if not manifest.get("finished"):
            raise RecordError(f"the run in {folder} is not finished; the same command continues it.")
        if "dirty" in str(manifest.get("commit")):
            raise RecordError(
                f"the run in {folder} was made by changed code, which nobody can run again; commit the changes and run "
                "it from there."
            )
        if any(part["commit"] != manifest.get("commit") for part in manifest.get("continued", [])):
            raise RecordError(
                f"the run in {folder} was continued by another version of the code; run it again from one commit."
            )
        self.manifest: dict[str, Any] = manifest
        self.cells = {(cell["scenario"], cell["attack"]): cell for cell in manifest["cells"]}
        self.records: dict[tuple[str, str], dict[tuple[str, int], Record]] = {}
        for record in records:
            self.records.setdefault((record.scenario, record.attack), {})[record.update_id, record.position] = record

    def attacks(self, scenarios: Collection[str], attacks: Collection[str]) -> list[tuple[str, str]]:
        """(scenario, attack) of these, all where empty."""
        return [
            (scenario, attack)
            for scenario, attack in self.cells
            if kind_of(attack) == "attack"
            and scenario in (scenarios or (scenario,))
            and attack in (attacks or (attack,))
        ]

    def images(self, scenario: str, attack: str) -> list[Record]:
        """The records of an attack in the order in which the images were attacked: that of the floors."""
        own, floor = self.records.get((scenario, attack), {}), self.records.get((scenario, "floor: mean image"), {})
        if not own or not own.keys() <= floor.keys():
            raise RecordError(f"{self.folder}: {scenario} x {attack} lacks records or floors; run the command again.")
        return [own[key] for key in floor if key in own]


def tree_of(
    runs: Sequence[Run],
    scenario: str,
    attack: str,
    images: Sequence[tuple[int, Record]],
    about: Mapping[str, Any],
    published: tuple[str, str],
) -> dict[str, Any]:
    """The entry as plain values, without pictures and submission; `published` are scenario and attack on the board."""
    cell = runs[0].cells[scenario, attack]
    if any(run.cells[scenario, attack]["threat_model"] != cell["threat_model"] for run in runs):
        raise RecordError(f"{scenario} x {attack}: the runs have different threat models; publish them apart.")
    described = {key: value for key, value in cell["data"].items() if key not in ("split_sizes", "updates")}
    floors: dict[str, Any] = {}
    controls: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in runs for where, name in run.records if where == scenario):
        kind = kind_of(name)
        values = _yardstick(runs, scenario, name, images)
        if values is None or kind == "attack":
            continue
        if name == f"{attack} (wrong update)":
            controls["wrong update"] = values
        elif name == f"floor: {attack} prior alone":
            floors["prior alone"] = values
        elif kind in ("floor", "oracle") and not name.endswith(" prior alone"):
            floors[name.removeprefix("floor: ")] = values
    return {
        "schema_version": SCHEMA_VERSION,
        "revision": 1,
        "supersedes": None,
        "scenario": _name(published[0]),
        "data": described | {"image_shape": tuple(described["image_shape"])},
        "threat_model": ThreatModel(**cell["threat_model"]),
        "attack": describe(_name(published[1]), cell["configuration"], about),
        "success_psnr": float(runs[0].manifest["success_psnr"]),
        "runs": tuple(_provenance(run, scenario, attack, about) for run in runs),
        "floors": floors,
        "controls": controls,
        "images": tuple(_image(index, record) for index, record in images),
    }


def _image(run: int, record: Record) -> dict[str, Any]:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    return {
        "run": run,
        "update_id": record.update_id,
        "position": record.position,
        "image_id": record.image_id,
        "status": record.status,
        "psnr": rounded(record.psnr),
        "mse": _significant(record.mse),
        "ssim": rounded(record.ssim),
        "lpips_alex": rounded(record.lpips_alex),
        "lpips_vgg": rounded(record.lpips_vgg),
        "psnr_oracle": rounded(record.psnr_oracle),
        "label": record.label,
        "label_inferred": record.label_inferred,
        "seed": record.seed,
        "gradient_evaluations": _significant(record.gradient_evaluations),
        "seconds": _significant(record.seconds),
    }


def _yardstick(
    runs: Sequence[Run], scenario: str, name: str, images: Sequence[tuple[int, Record]]
) -> dict[str, tuple[float, ...]] | None:
    """The scores of a floor or a control on the images of an attack; None where it lacks some."""
    found = [
        runs[run].records.get((scenario, name), {}).get((image.update_id, image.position)) for run, image in images
    ]
    if None in found:
        return None
    present = [record for record in found if record is not None]
    return {
        "psnr": tuple(round(record.psnr, 4) for record in present),
        "mse": tuple(_significant(record.mse) for record in present),
    }


def _provenance(run: Run, scenario: str, attack: str, about: Mapping[str, Any]) -> dict[str, Any]:
    cell, manifest = run.cells[scenario, attack], run.manifest
    records = run.records[scenario, attack].values()
    parities = {record.parity for record in records}
    weights = _weights(cell["configuration"]["attack"])
    recorded = cell.get("attack_weights") or []
    if odd := sorted(name for name, sha256 in weights.items() if recorded and sha256 not in recorded):
        raise RecordError(f"{scenario} x {attack}: {odd[0]} is not the file of the run any more; put that one there.")
    configuration = portable(cell["configuration"])
    return {
        "suite": manifest["name"],
        "size": manifest["size"],
        "command": portable_command(manifest["command"]),
        "configuration": configuration,
        "configuration_sha256": digest(configuration),
        "victim": cell["victim"],
        "weights": weights,
        "precision": cell["precision"],
        "parity": parities.pop() if len(parities) == 1 else "untested",
        "engine": cell["engine"],
        "metrics": manifest["metrics"],
        "version": __version__,
        "commit": manifest["commit"],
        "packages": manifest["versions"],
        "machine": {**manifest["platform"], "device": str(cell["device"]), "processes": cell["processes"]},
        "cost": {
            "seconds": _significant(sum(record.seconds for record in records)),
            "gradient_evaluations": _significant(sum(record.gradient_evaluations for record in records)),
            "peak_memory_bytes": cell["peak_memory_bytes"],
            **offline.of(cell, about, f"{scenario} x {attack}"),
        },
        "started": manifest["started"],
        "finished": manifest["finished"],
    }


def pictures_of(
    runs: Sequence[Run], scenario: str, attack: str, images: Sequence[tuple[int, Record]]
) -> tuple[tuple[dict[str, Any], ...], dict[str, tuple[bytes, bytes]]]:
    """What an entry says of its pictures, and the pictures: name -> reconstruction and private image."""
    shown, files = [], {}
    for row in pictures.chosen([record.psnr for _, record in images]):
        run, record = images[row]
        path = picture_path(runs[run].folder, scenario, attack, record.update_id)
        if record.status == "labels" or not path.is_file():
            continue
        tensors = load_file(path)
        found, truth = tensors["images"][record.position], tensors["private"][record.position]
        if max(found.shape[1:]) > pictures.LARGEST_SIDE:
            continue
        name = f"{record.update_id}-{record.position}{f'-run{run}' if run else ''}.png"
        files[name] = pictures.encode(found), pictures.encode(truth)
        shown.append(
            {
                "image": row,
                "file": name,
                "sha256": pictures.digest(files[name][0]),
                "private_sha256": pictures.digest(files[name][1]),
            }
        )
    return tuple(shown), files


def _significant(value: float) -> float:
    """Six digits, as the tables have them."""
    return float(f"{value:.6g}")


def _name(name: str) -> str:
    """A name that can stand in paths and addresses."""
    safe = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "-" for letter in name)
    return safe.strip("-_")[:80]


def portable_command(line: str) -> str:
    """The command without what belongs to the machine alone, such as the folder that it wrote into."""
    words, kept = iter(shlex.split(line)), []
    for word in words:
        if word.partition("=")[0] in _OF_THE_MACHINE:
            if "=" not in word:
                next(words, None)
        else:
            kept.append(_last_part(word))
    return shlex.join(kept)


def portable(node: Any) -> Any:  # noqa: ANN401 - any configuration
    """The configuration without paths of a machine: of an absolute one its last part stays, of `root` nothing."""
    if isinstance(node, dict):
        return {key: None if key == "root" else portable(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [portable(value) for value in node]
    return _last_part(node) if isinstance(node, str) else node


def _last_part(text: str) -> str:
    """Of an absolute path its name; anything else as it is."""
    if PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    return Path(text).name if Path(text).is_absolute() else text


def _weights(node: Any) -> dict[str, str]:  # noqa: ANN401 - any configuration
    """The files of weights that a configuration names -> their SHA-256."""
    if isinstance(node, dict | list | tuple):
        values = node.values() if isinstance(node, dict) else node
        return {name: value for each in values for name, value in _weights(each).items()}
    if isinstance(node, str) and node.endswith(_WEIGHTS) and (found := _file(node)):
        return {found.name: hashlib.sha256(found.read_bytes()).hexdigest()}
    return {}


def _file(name: str) -> Path | None:
    """The file of weights that attacks find under a name; None where there is none here."""
    for find in (locate, find_generator):
        with suppress(WeightsError):
            return find(Path(name))
    return None
