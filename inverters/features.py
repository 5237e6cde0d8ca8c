"""What an inverter reads of an update: numbers of one fixed length, whatever the victim."""

import hashlib
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from gibench.errors import ConfigurationError, NonFiniteError, ShapeError
from gibench.hashing import FeatureHash
from gibench.types import Update

SHORTEST = 1e-12
"""Length below which the gradient of a parameter is none, as pruning leaves it."""

Shapes = Mapping[str, torch.Size | tuple[int, ...]]


class FeatureSettings(BaseModel):
    """How `UpdateFeatures` reads an update.

    buckets: features of each token, by the hash; None keeps all coordinates as they are, without tokens only.
    seed, signed: of the hash. Learning to Invert (Wu et al., UAI 2023) sums without signs.
    tokens: one token for each parameter instead of one for all.
    relative: divide the gradient of each parameter by its length, which says how sure the victim is more than what it
        sees; the logarithm of the length is a feature instead.
    inputs: for each fully connected layer with a bias, the input that its gradient tells.
    weights: the victim's weights, hashed to as many numbers; 0 leaves them out.
    standardize: subtract the mean and divide by the standard deviation over the attacker's own pairs. Learning to
        Invert does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    buckets: Annotated[int, Field(ge=1, le=10**8)] | None = 4096
    seed: Annotated[int, Field(ge=0)] = 0
    signed: bool = True
    tokens: bool = False
    relative: bool = False
    inputs: bool = False
    weights: Annotated[int, Field(ge=0, le=10**7)] = 0
    standardize: bool = True


class UpdateFeatures(nn.Module):
    r"""Updates -> (U, T, K): T tokens of K features each, standardized on the attacker's own pairs.

    .. math:: f_t = (S_t \, g_t - \mu_t) / \sigma_t

    g_t is the whole update (T = 1), or with `tokens` the update of each parameter, and S_t its feature hash. The other
    kinds come behind, or as a token of their own each. The input of a fully connected layer is :math:`b^T W / b^T b`
    with the gradients W (O, I) of its weights and b (O,) of its bias: of one image exactly that image's input, whatever
    the layer's own weights are; of several a mixture.

    Args:
        shapes: parameter name -> shape, of one update.
        settings: see there.

    Raises:
        ConfigurationError: for settings that do not fit together, or the victim.
        ShapeError: on use, for updates of another victim.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, *, shapes: Shapes, settings: FeatureSettings) -> None:
        super().__init__()
        self.shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
        coordinates = sum(shape.numel() for shape in self.shapes.values())
        if settings.buckets is None and settings.tokens:
            raise ConfigurationError("tokens need one length for all; set buckets.")
        self.settings = settings
        self.layers = [name for name in self.shapes if _bias(name, self.shapes)] if settings.inputs else []
        if settings.inputs and not self.layers:
            raise ConfigurationError("no fully connected layer of the victim has a bias; set `inputs` to false.")
        groups = [{name: shape} for name, shape in self.shapes.items()] if settings.tokens else [self.shapes]
        seed, signed, length = settings.seed, settings.signed, settings.buckets or coordinates
        hashes = [] if settings.buckets is None else groups
        self.hashes = nn.ModuleList(
            FeatureHash(shapes=group, buckets=length, seed=seed, signed=signed) for group in hashes
        )
        self._groups = hashes
        self.weights: FeatureHash | None = None
        if settings.weights:
            self.weights = FeatureHash(shapes=self.shapes, buckets=settings.weights, seed=seed)
        parts = [length] * len(groups) + [self.shapes[name][1] for name in self.layers]
        parts += [settings.weights] if settings.weights else []
        parts += [len(self.shapes)] if settings.relative else []
        self.tokens, self.width = (len(parts), max(parts)) if settings.tokens else (1, sum(parts))
        self.register_buffer("mean", torch.zeros(self.tokens, self.width, dtype=torch.float32))
        self.register_buffer("deviation", torch.ones(self.tokens, self.width, dtype=torch.float32))

    def forward(self, update: Update, weights: Mapping[str, Tensor]) -> Tensor:
        """Features (U, T, K), in float32.

        Args:
            update: name -> (U, *shape).
            weights: the victim's parameters as the server has them, name -> (*shape).

        Raises:
            ShapeError: names or shapes are those of another victim.
        """
        return self.standardized(self.raw(update, weights))

    def standardized(self, raw: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation that `fit` measured, or loaded; (U, T, K)."""
        features: Tensor = (raw - self.mean) / self.deviation
        return features

    def digest(self) -> str:
        """SHA-256 of the map from coordinates to buckets."""
        digest = hashlib.sha256()
        for each in [*self.hashes, *([] if self.weights is None else [self.weights])]:
            digest.update(each.index.cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def fit(self, raw: Tensor) -> None:
        """Measure mean and standard deviation of raw features (N, T, K); what never changes is left at zero.

        Raises:
            ConfigurationError: there is one pair.
        NonFiniteError: they hold NaN or infinity.
        """
        if not torch.isfinite(raw).all():
            raise NonFiniteError("the features of the pairs hold NaN or infinity; repair the client's rate or defense.")
        if self.settings.standardize:
            if len(raw) < 2:
                raise ConfigurationError("standard deviations need two pairs or more; use more images.")
            # In double: means of a million times the deviation occur, with a victim's last bias.
            mean, deviation = raw.double().mean(0), raw.double().std(0)
            constant = deviation <= 1e-7 * mean.abs().clamp(min=1e-30)
            self.mean.copy_(mean)
            self.deviation.copy_(deviation.masked_fill(constant, 1.0))

    def raw(self, update: Update, weights: Mapping[str, Tensor]) -> Tensor:
        """Features (U, T, K) before they are standardized."""
        self._check(update)
        update = {name: tensor.detach() for name, tensor in update.items()}
        lengths = torch.stack([update[name].flatten(1).norm(dim=1) for name in self.shapes], dim=1)
        inputs = [_inputs(update, name) for name in self.layers]
        if self.settings.relative:
            scales = dict(zip(self.shapes, lengths.clamp(min=SHORTEST).unbind(1), strict=True))
            update = {name: tensor / _like(scales[name], tensor) for name, tensor in update.items()}
        parts = [
            each({name: update[name] for name in group}) for each, group in zip(self.hashes, self._groups, strict=True)
        ]
        if not parts:
            parts = [torch.cat([update[name].flatten(1) for name in self.shapes], 1)]
        parts += inputs
        if self.weights is not None:
            hashed = self.weights({name: weights[name].detach()[None] for name in self.shapes})
            parts.append(hashed.expand(len(lengths), -1))
        if self.settings.relative:
            parts.append(lengths.clamp(min=SHORTEST).log())
        if not self.settings.tokens:
            return torch.cat(parts, 1)[:, None].float()
        padded = [nn.functional.pad(part, (0, self.width - part.shape[1])) for part in parts]
        return torch.stack(padded, 1).float()

    def _check(self, update: Update) -> None:
        missing, extra = self.shapes.keys() - update.keys(), update.keys() - self.shapes.keys()
        other = [name for name, shape in self.shapes.items() if name in update and update[name].shape[1:] != shape]
        told = [("lacks", missing), ("adds", extra), ("has another shape in", other)]
        faults = [f"{word} {', '.join(sorted(names)[:3])}" for word, names in told if names]
        if faults:
            raise ShapeError(
                f"the update {' and '.join(faults)}; an inverter serves the victim that it was trained for."
            )


def _bias(weight: str, shapes: Mapping[str, torch.Size]) -> str | None:
    """The name of the bias of a fully connected layer, by the name of its weights."""
    bias = weight.removesuffix("weight") + "bias"
    connected = weight.endswith("weight") and len(shapes[weight]) == 2
    return bias if connected and shapes.get(bias) == shapes[weight][:1] else None


def _inputs(update: Update, weight: str) -> Tensor:
    matrix, bias = update[weight], update[weight.removesuffix("weight") + "bias"]
    length = bias.square().sum(1, keepdim=True).clamp(min=torch.finfo(bias.dtype).tiny)
    return (bias[:, None] @ matrix)[:, 0] / length


def _like(scale: Tensor, tensor: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (tensor.ndim - 1))
