"""A trained generator on disk: safetensors, and a card that says what is in it. Both are untrusted."""

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from generators.dcgan import DCGAN
from generators.residual_gan import ResidualGAN
from generators.vae import VAEDecoder
from gibench.errors import ConfigurationError, WeightsError
from gibench.search.generator import Generator
from gibench.storage import write_atomically
from gibench.victims.weights import refusal

MODELS: dict[str, type[Generator]] = {"dcgan": DCGAN, "residual_gan": ResidualGAN, "vae": VAEDecoder}
"""By the names on cards. To add a model: a line here."""

METADATA = "gibench_generator"
LONGEST = 1 << 20  # bytes of a card

Origin = Literal["in_distribution", "out_of_distribution"]
UPDATES: Literal["updates"] = "updates"
"""On the card of a generator that was learned from updates alone: no image is needed, so nothing has to be granted."""
Storage = Literal["float32", "float16"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=65536)]
Setting = bool | Count | Annotated[str, Field(max_length=64)] | Annotated[list[Count], Field(max_length=16)]
Settings = dict[str, Setting]


class Card(BaseModel):
    """What a file says of the generator in it.

    model, settings: its class, by a name of `MODELS`, and all its arguments.
    data: name of the data that it was trained on. origin: what they are to the images attacked; "updates" where it was
        learned from updates of such data instead, without the images (`fit_giml`).
    image_ids_sha256: of the images trained on, or behind those updates, all of the prior split.
    training: settings and outcome of the training, for the reader.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    model: Annotated[str, Field(max_length=64)]
    settings: Settings
    data: str
    origin: Origin | Literal["updates"]
    image_ids_sha256: Digest
    training: dict[str, Any]


def build(model: str, settings: Settings) -> Generator:
    """Make a generator of `MODELS` by its name and its arguments, with new weights.

    Raises:
        ConfigurationError: there is no such model, or it has no such setting.
    """
    if model not in MODELS:
        raise ConfigurationError(f"there is no generator {model!r}; choose one of {', '.join(MODELS)}.")
    try:
        return MODELS[model](**settings)
    except (TypeError, RuntimeError, ValueError, ArithmeticError, AssertionError) as error:
        raise ConfigurationError(f"settings {settings} do not fit the generator {model!r}: {error}") from error


def save_generator(card: Card, generator: Generator, path: str | Path, *, storage: Storage = "float32") -> Path:
    """Write weights and card as one safetensors file, all at once.

    Args:
        card: of the generator.
        generator: its weights and buffers are written.
        path: of the file.
        storage: "float16" halves the file, for shipping.

    Raises:
        StorageError: the file cannot be written.
        WeightsError: a weight is not finite in that type.
    """
    kind = torch.float16 if storage == "float16" else torch.float32
    tensors = {
        name: (value.to(kind) if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in generator.state_dict().items()
    }
    _check_finite(tensors, Path(path))
    return write_atomically(save(tensors, metadata={METADATA: card.model_dump_json()}), Path(path))


def load_generator(path: str | Path) -> Generator:
    """Read a generator, on the CPU in float32, in evaluation mode, with frozen weights.

    It knows its `name`, of the file without its ending, its `origin`, as its card says (None if that is "updates"), and
    its file. No memory is taken for the generator before the names and shapes in the file are known to be those that
    its card asks for.

    Args:
        path: of a file that `fit_generator` wrote, or the name alone of one that ships with gibench, such as
            vae_photographs_tiny.safetensors.

    Raises:
        WeightsError: the file is missing, no safetensors, without a card, damaged, or not what its card says.
    """
    return open_generator(path)[1]


def open_generator(path: str | Path) -> tuple[Card, Generator]:
    """Read a generator with its card; see `load_generator`."""
    path = find(path)
    card = _card(path)
    try:
        with torch.device("meta"):
            generator = build(card.model, card.settings)
    except ConfigurationError as error:
        raise WeightsError(f"{path}: {error}") from error
    _check_names(path, generator.state_dict())
    content = path.read_bytes()
    tensors = load(content)
    _check_finite(tensors, path)
    weights = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    generator.load_state_dict(weights, assign=True)
    digest = hashlib.sha256(content).hexdigest()
    generator.name, generator.origin = path.stem, None if card.origin == UPDATES else card.origin
    generator.weights_sha256, generator.weights_path = digest, path
    return card, generator.eval().requires_grad_(False)


def find(path: str | Path) -> Path:
    """The file at `path`, or the one that ships under that name.

    Raises:
        WeightsError: there is neither.
    """
    path = Path(path)
    if path.is_file():
        return path
    shipped = Path(str(files("generators"))) / "weights"
    if path.name == str(path) and (shipped / path.stem / path.name).is_file():
        return shipped / path.stem / path.name
    names = ", ".join(sorted(file.name for file in shipped.glob("*/*.safetensors"))) or "none"
    raise WeightsError(
        f"there is no generator {path}; train one with `gibench fit`, or correct the path (shipped are: {names})."
    )


def _card(path: Path) -> Card:
    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(METADATA)
        if written is None or len(written) > LONGEST:
            raise WeightsError(f"{path} carries no card of a generator; train one with `gibench fit`.")
        return Card.model_validate_json(written)
    except (SafetensorError, ValidationError, OSError) as error:
        raise refusal(path, error, what="generator in safetensors") from error


_FLOATS = ("F32", "F16", "BF16")


def _check_names(path: Path, expected: dict[str, Tensor]) -> None:
    """Compare names, shapes and types in the header of a file with those of a generator."""
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
        odd = sorted(found.keys() ^ expected.keys()) + [
            name
            for name in sorted(found.keys() & expected.keys())
            if tuple(found[name].get_shape()) != tuple(expected[name].shape)
            or (found[name].get_dtype() not in (_FLOATS if expected[name].is_floating_point() else ("I64",)))
        ]
    if odd:
        raise WeightsError(f"{path} does not fit the generator on its card ({', '.join(odd[:3])}); fetch it again.")


def _check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise WeightsError(f"{path} would hold or holds NaN or infinity; train, save or fetch it again.")
