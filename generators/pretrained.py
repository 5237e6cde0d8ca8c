"""Generators with weights from elsewhere: files of known networks, and networks of a user's own packages.

By the dates of their last releases, packages of BigGAN and StyleGAN2 are not kept up (pytorch-pretrained-biggan 2019,
stylegan2-torch 2022, stylegan2-pytorch January 2025), so that none is an extra of gibench: a user who has one installed
names it to `by_path`, with weights converted to safetensors.
"""

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor, nn

from generators.dcgan import DCGAN
from generators.foreign import Foreign, Output
from generators.taef2 import TAEF2, TAEF2Encoder
from gibench.errors import ConfigurationError, WeightsError
from gibench.search.generator import Generator
from gibench.victims.weights import locate, refusal


class _Known(NamedTuple):
    """A network whose published files are read: its class, its own arguments there, what its names begin with here."""

    network: type[Generator]
    settings: dict[str, Any]
    prefix: str


KNOWN = {
    "dcgan": _Known(DCGAN, {"image_shape": [3, 64, 64]}, ""),
    "taef2": _Known(TAEF2, {}, "layers."),
}
"""By the names that `pretrained` takes. To add one: a line here."""

_COUNTER = "num_batches_tracked"


def pretrained(
    *,
    path: str | Path,
    model: Literal["dcgan", "taef2"],
    sha256: str | None = None,
    settings: dict[str, Any] | None = None,
) -> Generator:
    """Load published weights, on the CPU in float32, in evaluation mode, with frozen weights.

    No memory is taken before names and shapes of the file are known to be those of the network. The generator knows its
    `name`, of the file without its ending, and its file, as from `load_generator`.

    Args:
        path: of a safetensors file; one that does not exist is looked for in the folder GIBENCH_WEIGHTS, too. Names of
            tensors are those of the network's own release: "main.0.weight" of the DCGAN of PyTorch's examples,
            "1.weight" of TAEF2.
        model: "dcgan", by default of 64 pixels, 100 latents and 64 channels; or "taef2", by default of 32 pixels.
        sha256: that the file must have, 64 hexadecimal digits; None takes any.
        settings: the network's own arguments, such as image_shape: [3, 64, 64]; they replace the defaults.

    Raises:
        ConfigurationError: there is no such model, or it has no such setting.
        WeightsError: the file is missing, no safetensors (such as a pickle, which is never read), of another hash, of
            other names or shapes, or it holds NaN or infinity.
    """
    if model not in KNOWN:
        raise ConfigurationError(f"there is no pretrained generator {model!r}; choose one of {', '.join(KNOWN)}.")
    known = KNOWN[model]
    try:
        with torch.device("meta"):
            generator = known.network(**known.settings | (settings or {}))
    except TypeError as error:
        raise ConfigurationError(f"settings {settings} do not fit the generator {model!r}: {error}") from error
    found = locate(Path(path))
    expected = {name.removeprefix(known.prefix): value for name, value in generator.state_dict().items()}
    weights, digest = read_weights(found, expected, of=type(generator).__name__, sha256=sha256)
    generator.load_state_dict({known.prefix + name: value for name, value in weights.items()}, assign=True)
    generator.name, generator.weights_sha256, generator.weights_path = found.stem, digest, found
    return generator.eval().requires_grad_(False)


def pretrained_encoder(*, path: str | Path, sha256: str | None = None) -> TAEF2Encoder:
    """Load the encoder of TAEF2, in evaluation mode; `path`, `sha256` and errors as of `pretrained`."""
    encoder = TAEF2Encoder()
    expected = {name.removeprefix("layers."): value for name, value in encoder.state_dict().items()}
    weights, _ = read_weights(locate(Path(path)), expected, of="TAEF2Encoder", sha256=sha256)
    encoder.load_state_dict({f"layers.{name}": value for name, value in weights.items()})
    return encoder.eval().requires_grad_(False)


def by_path(
    *,
    path: str,
    latent_shape: Sequence[int],
    image_shape: Sequence[int],
    arguments: dict[str, Any] | None = None,
    weights: str | Path | None = None,
    sha256: str | None = None,
    stages: Sequence[str] = (),
    conditioned: Sequence[str] = (),
    output: Output = "tanh",
    num_classes: int | None = None,
) -> Generator:
    """Make a generator of a network from any package: what `path` names is imported and called.

    Args:
        path: of a class or function that returns a `torch.nn.Module`, such as "mypackage.nets.Generator". Its code
            runs: name only what you trust.
        latent_shape: of one latent, which the search draws from N(0, 1).
        image_shape: (C, H, W) of what it draws.
        arguments: of the call, by name.
        weights: a safetensors file with the names of the module's own `state_dict`; None keeps what the call made.
            One that does not exist is looked for in the folder GIBENCH_WEIGHTS, too.
        sha256: see `pretrained`; only with `weights`.
        stages: as all below, see `Foreign`.
        conditioned: of `stages`, those that take the classes.
        output: of the module, "tanh" or "unit".
        num_classes: K, where it takes classes.

    Raises:
        ConfigurationError: there is no such thing to import, it is no module, refuses its arguments, or breaks what
            `Foreign` asks for.
        WeightsError: as `pretrained`.
    """
    network = _made(path, arguments or {})
    if weights is None and sha256 is not None:
        raise ConfigurationError("sha256 is of a file of weights; name the file, too, or leave it out.")
    name, found, digest = path.rpartition(".")[2], None, None
    if weights is not None:
        found = locate(Path(weights))
        tensors, digest = read_weights(found, network.state_dict(), of=path, sha256=sha256)
        network.load_state_dict(tensors, assign=True)
        name = found.stem
    generator = Foreign(
        network.eval().requires_grad_(False),
        latent_shape=latent_shape,
        image_shape=image_shape,
        stages=stages,
        conditioned=conditioned,
        output=output,
        num_classes=num_classes,
    )
    generator.name, generator.weights_sha256, generator.weights_path = name, digest, found
    return generator.eval().requires_grad_(False)


def read_weights(
    path: Path, expected: Mapping[str, Tensor], *, of: str, sha256: str | None
) -> tuple[dict[str, Tensor], str]:
    """Read a safetensors file, floating point as float32, and its SHA-256.

    Args:
        path: of the file.
        expected: tensors whose names and shapes it must have; counters of BatchNorm may be missing.
        of: what errors call the network.
        sha256: that it must have, or None.

    Raises:
        WeightsError: see `pretrained`.
    """
    if sha256 is not None and not (len(sha256) == 64 and set(sha256.lower()) <= set("0123456789abcdef")):
        raise ConfigurationError(f"sha256 is {sha256!r}; pass 64 hexadecimal digits.")
    _check_header(path, expected, of=of)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise WeightsError(
            f"{path} has the SHA-256 {digest}, not {sha256.lower()}; fetch it again, or correct the hash."
        )
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in load(content).items()}
    if damaged := sorted(name for name, value in tensors.items() if not bool(torch.isfinite(value).all())):
        raise WeightsError(f"{path} holds NaN or infinity in {', '.join(damaged[:3])}; fetch it again.")
    counters = {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith(_COUNTER)}
    return counters | tensors, digest


def _check_header(path: Path, expected: Mapping[str, Tensor], *, of: str) -> None:
    """Hold names, shapes and kinds of type against those expected, before anything is read."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
            shapes = {name: tuple(piece.get_shape()) for name, piece in found.items()}
            floats = {name: piece.get_dtype() in ("F64", "F32", "F16", "BF16") for name, piece in found.items()}
    except (SafetensorError, OSError) as error:
        raise refusal(path, error, what="safetensors file") from error
    wanted = {name for name in expected if not name.endswith(_COUNTER)}
    common = sorted(expected.keys() & shapes.keys())
    problems = {
        "missing": sorted(wanted - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "of another shape": [
            f"{name} {shapes[name]} for {tuple(expected[name].shape)}"
            for name in common
            if shapes[name] != tuple(expected[name].shape)
        ],
        "of another type": [name for name in common if floats[name] != expected[name].is_floating_point()],
    }
    if told := [f"{len(names)} {problem} ({', '.join(names[:3])})" for problem, names in problems.items() if names]:
        raise WeightsError(f"{path} does not fit {of}: {', '.join(told)}; choose the network that it was saved from.")


def _made(path: str, arguments: dict[str, Any]) -> nn.Module:
    module, _, name = path.rpartition(".")
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"there is no {path!r} to import ({error}); install its package, or correct the path."
        ) from error
    try:
        network = factory(**arguments)
    except TypeError as error:
        raise ConfigurationError(f"{path} does not take the arguments {arguments}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigurationError(f"{path} makes a {type(network).__name__}; name what makes a torch.nn.Module.")
    return network
