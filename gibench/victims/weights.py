"""Weights on disk: safetensors that carry the victim's fingerprint. No pickles: reading one may run code."""

import copy
import hashlib
import json
import os
import zipfile
from pathlib import Path

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gibench.errors import WeightsError
from gibench.storage import write_atomically
from gibench.victims.base import Stage, Victim

_METADATA = "gibench_fingerprint"
_COUNTER = "num_batches_tracked"


class _Fingerprint(BaseModel):
    """What `load_weights` reads of the fingerprint in a file."""

    architecture: str
    weights_sha256: str
    initialization: str
    training_steps: int | None
    stage: Stage
    test_accuracy: float | None


def save_weights(victim: Victim, path: str | Path) -> Path:
    """Write the network's parameters and buffers with the victim's fingerprint, all at once, and return the path.

    Names are those of `victim.network.state_dict()`. The fingerprint stands in the metadata, as JSON.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in victim.network.state_dict().items()}
    metadata = {_METADATA: json.dumps(victim.fingerprint())}
    return write_atomically(save(tensors, metadata=metadata), Path(path))


def load_weights(
    victim: Victim,
    path: str | Path,
    *,
    stage: Stage | None = None,
    training_steps: int | None = None,
    test_accuracy: float | None = None,
) -> Victim:
    """Return a copy of `victim` with the weights of a safetensors file, in the victim's own type and on its device.

    Args:
        victim: of the architecture and num_classes of the file.
        path: of the file; one that does not exist is looked for in the folder GIBENCH_WEIGHTS, too.
        stage: how far they are trained; by default what the file says, required where `save_weights` did not write it.
        training_steps: SGD steps behind them; by default what the file says.
        test_accuracy: in [0, 1]; by default what the file says.

    Raises:
        WeightsError: the file is missing, no safetensors, damaged, of another network, not what its fingerprint says,
            or holds NaN or infinity; or nobody says the stage.
    """
    found = locate(Path(path))
    tensors, recorded = _read(found)
    if recorded and recorded.architecture != victim.architecture:
        raise WeightsError(f"{found} is of {recorded.architecture}, not {victim.architecture}; choose that victim.")
    stage = stage or (recorded.stage if recorded else None)
    if stage is None:
        raise WeightsError(f"{found} does not say how far it was trained; set stage: initial, trained or converged.")
    loaded = copy.deepcopy(victim)
    _fill(loaded, tensors, found)
    if recorded and loaded.fingerprint()["weights_sha256"] != recorded.weights_sha256:
        raise WeightsError(f"{found} is not what its fingerprint says: it was changed; save or fetch it again.")
    like = next(victim.parameters())
    loaded.network.to(like.device, like.dtype)
    loaded.stage = stage
    loaded.initialization = recorded.initialization if recorded else f"file {found.name}"
    loaded.training_steps = recorded.training_steps if recorded and training_steps is None else training_steps
    loaded.test_accuracy = recorded.test_accuracy if recorded and test_accuracy is None else test_accuracy
    return loaded


def locate(path: Path) -> Path:
    """The file at `path`, or of that name in the folder GIBENCH_WEIGHTS.

    Raises:
        WeightsError: there is neither.
    """
    if path.is_file():
        return path
    folder = os.environ.get("GIBENCH_WEIGHTS")
    if folder is None:
        raise WeightsError(f"there is no file {path}; correct the path, or set GIBENCH_WEIGHTS to the folder with it.")
    found = Path(folder) / path
    if not found.is_file():
        raise WeightsError(f"there is no file {path}, nor {found}; correct the path or GIBENCH_WEIGHTS.")
    return found


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers by name, the same in float32 and float64."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        array = tensor.detach().cpu().float().contiguous()
        digest.update(f"{name}{tuple(array.shape)}".encode())
        digest.update(array.numpy().tobytes())
    return digest.hexdigest()


def refusal(path: Path, error: SafetensorError | ValidationError | OSError, *, what: str) -> WeightsError:
    """The error for a file that cannot be read as `what`: the first reason, and what to do."""
    reason = str(error).splitlines()[0]
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        reason = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    pickled = zipfile.is_zipfile(path) or path.suffix in (".pt", ".pth", ".pkl", ".bin", ".tar")
    convert = "a pickle is never read: convert it with safetensors.torch.save_file"
    advice = convert if pickled else "save or fetch it again"
    return WeightsError(f"{path} is no {what} ({reason}); {advice}.")


def _read(path: Path) -> tuple[dict[str, Tensor], _Fingerprint | None]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
            metadata = file.metadata() or {}
        recorded = _Fingerprint.model_validate_json(metadata[_METADATA]) if _METADATA in metadata else None
    except (SafetensorError, ValidationError, OSError) as error:
        raise refusal(path, error, what="complete safetensors file") from error
    return tensors, recorded


def _fill(victim: Victim, tensors: dict[str, Tensor], path: Path) -> None:
    """Replace the tensors of the network by those of the file, types included, or say which do not fit."""
    expected = victim.network.state_dict()
    # Counters of BatchNorm are no weights: files without them are common.
    given = {name: tensor for name, tensor in expected.items() if name.endswith(_COUNTER)} | tensors
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & given.keys())
        if given[name].shape != expected[name].shape
    ]
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": shapes,
    }
    told = [f"{len(names)} {problem} ({', '.join(names[:3])})" for problem, names in problems.items() if names]
    if told:
        raise WeightsError(
            f"{path} does not fit {victim.architecture}: {', '.join(told)}; choose the architecture, image_shape and "
            "num_classes that it was saved from."
        )
    damaged = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if damaged:
        raise WeightsError(f"{path} holds NaN or infinity in {', '.join(damaged[:3])}; fetch it again.")
    victim.network.load_state_dict(given, assign=True)
