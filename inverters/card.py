"""A trained inverter on disk: safetensors, and a card that says what it was trained for. Both are untrusted."""

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gibench.clients import Client
from gibench.errors import ConfigurationError, WeightsError
from gibench.storage import write_atomically
from gibench.types import Simulate
from gibench.victims.weights import refusal
from inverters.base import Inverter
from inverters.convolutional import Convolutional
from inverters.features import FeatureSettings, UpdateFeatures
from inverters.mlp import MLP
from inverters.set_inverter import SetInverter

NETWORKS: dict[str, type[Inverter]] = {"mlp": MLP, "convolutional": Convolutional, "set": SetInverter}
NetworkName = Literal["mlp", "convolutional", "set"]
METADATA = "gibench_inverter"
LONGEST = 1 << 20  # bytes of a card
MOST_TOKENS = 4096

Count = Annotated[int, Field(ge=1, le=10**6)]
Origin = Literal["in_distribution", "out_of_distribution"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Setting = bool | Annotated[int, Field(ge=1, le=65536)]


class Card(BaseModel):
    """What a file says of the inverter in it.

    network, settings: its class, by a name of `NETWORKS`, and its own arguments.
    features: how it reads updates. shapes: parameter name -> shape, of the updates.
    image_shape: (C, H, W). slots: the images that it answers. batch_sizes: B of the updates that it was trained on.
    victims: SHA-256 of the weights of each victim, in float32. architecture: theirs.
    update: "gradient" or "fedavg". local: the steps behind it. batch_norm: the regime. defense: of the clients, with
        its settings, or None.
    probe: the length of what the first client's simulation makes of a fixed batch, for each parameter.
    hash_sha256: of the map from coordinates to buckets; its seed stands in `features`.
    data: name of the auxiliary data. origin: what they are to the images attacked. image_ids_sha256: those trained on.
    training: settings and outcome of the training, for the reader.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Literal[1] = 1
    network: NetworkName
    settings: dict[str, Setting]
    features: FeatureSettings
    shapes: dict[str, list[Count]]
    image_shape: Annotated[list[Count], Field(min_length=3, max_length=3)]
    slots: Annotated[int, Field(ge=1, le=4096)]
    batch_sizes: Annotated[list[Count], Field(min_length=1)]
    victims: Annotated[list[Digest], Field(min_length=1)]
    architecture: str
    update: Literal["gradient", "fedavg"]
    local: dict[str, float | None]
    batch_norm: Literal["absent", "eval", "private", "shared"]
    defense: str | None
    probe: list[float]
    hash_sha256: Digest
    data: str
    origin: Origin
    image_ids_sha256: Digest
    training: dict[str, Any]


class Loaded(NamedTuple):
    """A file of an inverter that was found consistent in itself."""

    card: Card
    network: Inverter
    statistics: tuple[Tensor, Tensor]
    path: Path

    def features(self) -> UpdateFeatures:
        """How it reads updates, standardized as in its training."""
        settings, width = self.card.features, self.statistics[0].shape[1]
        if max(settings.buckets or 0, settings.weights) > width:
            raise WeightsError(f"{self.path} does not hold the statistics of its features; save or fetch it again.")
        features = UpdateFeatures(
            shapes={name: tuple(shape) for name, shape in self.card.shapes.items()}, settings=settings
        )
        for buffer, value in zip((features.mean, features.deviation), self.statistics, strict=True):
            if buffer.shape != value.shape:
                raise WeightsError(f"{self.path} does not hold the statistics of its features; save or fetch it again.")
            buffer.copy_(value)
        if features.digest() != self.card.hash_sha256:
            raise WeightsError(f"{self.path} was trained with another hash than its card says; train it again.")
        return features


def build_for(card: Card, *, tokens: int, width: int) -> Inverter:
    """Make the network on a card, with new weights; see `build`."""
    shape = tuple(card.image_shape)
    return build(card.network, card.settings, tokens=tokens, width=width, image_shape=shape, slots=card.slots)


def build(
    name: str, settings: dict[str, Setting], *, tokens: int, width: int, image_shape: tuple[int, ...], slots: int
) -> Inverter:
    """Make a network of `NETWORKS` by its name and its own settings.

    Raises:
        ConfigurationError: there is no such network, or it has no such setting.
    """
    if name not in NETWORKS:
        raise ConfigurationError(f"there is no network {name!r}; choose one of {', '.join(NETWORKS)}.")
    try:
        return NETWORKS[name](tokens=tokens, width=width, image_shape=image_shape, slots=slots, **settings)
    except (TypeError, RuntimeError, ValueError, ArithmeticError, AssertionError) as error:
        raise ConfigurationError(f"settings {settings} do not fit the network {name!r}: {error}") from error


def save_inverter(card: Card, network: Inverter, features: UpdateFeatures, path: str | Path) -> Path:
    """Write weights, feature statistics and card as one safetensors file, all at once.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    tensors |= {"features.mean": features.mean.cpu(), "features.deviation": features.deviation.cpu()}
    return write_atomically(save(tensors, metadata={METADATA: card.model_dump_json()}), Path(path))


def load_inverter(path: str | Path) -> Loaded:
    """Read an inverter, on the CPU, in evaluation mode.

    No memory is taken for the network before the tensors of the file are known to be those that its card asks for.

    Raises:
        WeightsError: the file is missing, no safetensors, without a card, damaged, or not what its card says.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no inverter {path}; train one with `gibench fit`, or correct the path.")
    card, tensors = _read(path)
    statistics = tensors.pop("features.mean", None), tensors.pop("features.deviation", None)
    mean, deviation = statistics
    if mean is None or deviation is None or mean.ndim != 2 or mean.shape != deviation.shape or not mean.numel():
        raise WeightsError(f"{path} does not hold the statistics of its features; save or fetch it again.")
    if any(value.dtype != torch.float32 for value in (*tensors.values(), mean, deviation)):
        raise WeightsError(f"{path} holds other types than float32; save or fetch it again.")
    if not (deviation > 0).all() or len(card.probe) != len(card.shapes) or len(mean) > MOST_TOKENS:
        raise WeightsError(f"{path} holds statistics or a probe that no training writes; save or fetch it again.")
    tokens, width = mean.shape
    try:
        with torch.device("meta"):
            network = build_for(card, tokens=tokens, width=width)
    except ConfigurationError as error:
        raise WeightsError(f"{path}: {error}") from error
    expected = {f"network.{name}": value for name, value in network.state_dict().items()}
    odd = sorted(expected.keys() ^ tensors.keys()) + sorted(
        name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape
    )
    if odd:
        raise WeightsError(f"{path} does not fit the network on its card ({', '.join(odd[:3])}); fetch it again.")
    if not all(bool(torch.isfinite(value).all()) for value in (*tensors.values(), mean, deviation)):
        raise WeightsError(f"{path} holds NaN or infinity; save or fetch it again.")
    weights = {name.removeprefix("network."): value for name, value in tensors.items()}
    network.load_state_dict(weights, assign=True)
    return Loaded(card, network.eval().requires_grad_(False), (mean, deviation), path)


def _read(path: Path) -> tuple[Card, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            written = (file.metadata() or {}).get(METADATA)
            if written is None or len(written) > LONGEST:
                raise WeightsError(f"{path} carries no card of an inverter; train one with `gibench fit`.")
            card = Card.model_validate_json(written)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dict
    except (SafetensorError, ValidationError, OSError) as error:
        raise refusal(path, error, what="inverter in safetensors") from error
    return card, tensors


def probe(
    simulate: Simulate, *, like: Tensor, image_shape: tuple[int, ...], batch_size: int, classes: int
) -> list[float]:
    """What a simulation makes of one fixed batch: the length of its update of each parameter.

    Args:
        simulate: of the client, or of the attacker.
        like: a parameter of the victim, for device and type.
        image_shape: (C, H, W).
        batch_size: B.
        classes: of the victim.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, batch_size, *image_shape, generator=generator, dtype=torch.float32).to(like)
    labels = torch.arange(batch_size, device=like.device)[None] % classes
    with torch.no_grad():
        update = simulate(images, labels)
    return [float(update[name].double().norm()) for name in sorted(update)]


def local_of(simulate: Simulate) -> dict[str, float | None]:
    """The local steps behind an update, as far as the simulation that attackers get says them."""
    told = {name: getattr(simulate, name, None) for name in ("steps", "size", "rate", "scale")}
    return {name: None if value is None else float(value) for name, value in told.items()}


def shapes_of(client: Client) -> dict[str, tuple[int, ...]]:
    """The shapes of the client's updates, by name."""
    return {name: tuple(parameter.shape) for name, parameter in client.victim.named_parameters()}
