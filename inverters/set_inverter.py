"""A set inverter: one network for any number of images up to its slots, which also says how many there are."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gibench.errors import ConfigurationError
from inverters.base import Inverter, Slots


class SetInverter(Inverter):
    """Tokens of an update -> attention among them -> S learned queries that attend to them -> images and existence.

    Set prediction as in DETR (Carion et al., ECCV 2020) with the matching loss of Learning to Invert: each of the first
    B queries may answer any of the B images. That the first are meant, not any B of them as in DETR, makes the logits
    of existence an ordinal regression of B: exact counts are learned long before the images are told apart.

    Args:
        tokens, width: T and K of the features.
        image_shape: (C, H, W).
        slots: S, the largest number of images.
        model: width of the attention.
        heads: of the attention.
        encoders, decoders: layers.
        hidden: units of the last hidden layer before the pixels.
    """

    def __init__(
        self,
        *,
        tokens: int,
        width: int,
        image_shape: Sequence[int],
        slots: int,
        model: int = 256,
        heads: int = 4,
        encoders: int = 2,
        decoders: int = 2,
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        if max(encoders, decoders) > 64:
            raise ConfigurationError(f"{encoders} and {decoders} layers are too many; use at most 64 of each.")
        if model % heads:
            raise ConfigurationError(f"model is {model}; choose a multiple of the {heads} heads.")
        channels, height, side = image_shape
        self.form = (slots, channels, height, side)
        self.read = nn.ModuleList(nn.Linear(width, model) for _ in range(tokens))
        self.places = nn.Parameter(torch.randn(tokens, model) / model**0.5)
        self.queries = nn.Parameter(torch.randn(slots, model))
        # Dropout off: pairs are made anew without end.
        encoder = nn.TransformerEncoderLayer(model, heads, 4 * model, 0.0, batch_first=True, norm_first=True)
        decoder = nn.TransformerDecoderLayer(model, heads, 4 * model, 0.0, batch_first=True, norm_first=True)
        self.encode = nn.TransformerEncoder(encoder, encoders, enable_nested_tensor=False)
        self.decode = nn.TransformerDecoder(decoder, decoders)
        self.draw = nn.Sequential(
            nn.LayerNorm(model),
            nn.Linear(model, hidden),
            nn.ReLU(),
            nn.Linear(hidden, channels * height * side),
            nn.Sigmoid(),
        )
        self.exists = nn.Linear(model, 1)

    def forward(self, features: Tensor) -> Slots:
        """See `Inverter`."""
        tokens = [read(token) for read, token in zip(self.read, features.unbind(1), strict=True)]
        known = self.encode(torch.stack(tokens, 1) + self.places)
        answers = self.decode(self.queries.expand(len(features), -1, -1), known)
        return Slots(self.draw(answers).unflatten(2, self.form[1:]), self.exists(answers)[..., 0])
