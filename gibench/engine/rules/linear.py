"""Linear layers: G = sum over the update's samples and positions of delta a^T."""

from torch import Tensor, nn
from torch.nn import functional as F

from gibench.engine.rules.base import Capture, Pair, Rule, pair


class LinearRule(Rule[nn.Linear]):
    """Weight (O, I) and bias (O) of z = W a + b, for a (N, ..., I)."""

    def forward(self, inputs: Tensor, updates: int) -> Capture:
        """See `Rule`."""
        return Capture(inputs, F.linear(inputs, self.layer.weight, self.layer.bias))

    def gradients(self, inputs: Tensor, delta: Tensor, updates: int) -> dict[str, Tensor]:
        """See `Rule`."""
        a, d = _rows(inputs, updates), _rows(delta, updates)
        weight = {"weight": d.mT @ a.to(d.dtype)}
        return weight if self.layer.bias is None else {**weight, "bias": d.sum(1)}

    def products(self, inputs: Tensor, delta: Tensor, updates: int, observed: dict[str, Tensor]) -> dict[str, Pair]:
        """See `Rule`; by Gram matrices of a and delta where that is cheaper than G."""
        a, d = _rows(inputs, updates), _rows(delta, updates)
        if not gram_is_cheaper(a.shape[1], a.shape[2], d.shape[2]):
            return super().products(inputs, delta, updates, observed)
        found = {"weight": gram(a, d, observed["weight"])}
        if "bias" in observed:
            found["bias"] = pair(d.sum(1), observed["bias"])
        return found


def gram_is_cheaper(rows: int, inputs: int, outputs: int) -> bool:
    """Whether the Gram matrices of a (rows, inputs) and delta (rows, outputs) cost less than delta^T a."""
    return rows * (inputs + outputs) < inputs * outputs


def gram(a: Tensor, d: Tensor, observed: Tensor) -> Pair:
    """<G, g> and <G, G> of G = delta^T a, without G.

    <delta^T a, g> = sum of (a g^T) * delta, and |delta^T a|^2 = sum of (a a^T) * (delta delta^T); known as ghost norms.

    Args:
        a: (U, T, I).
        d: delta, (U, T, O).
        observed: (U', O, I); all restarts of an update share one product with it.
    """
    a, d = a.to(observed.dtype), d.to(observed.dtype)
    restarts = len(a) // len(observed)
    predicted = a.unflatten(0, (-1, restarts)).flatten(1, 2) @ observed.mT  # (U', restarts * T, O)
    cross = (predicted.reshape(d.shape) * d).sum((1, 2))
    if a.shape[1] == 1:
        return cross, (a.square().sum(2) * d.square().sum(2)).squeeze(1)
    return cross, ((a @ a.mT) * (d @ d.mT)).sum((1, 2))


def _rows(samples: Tensor, updates: int) -> Tensor:
    """(U * B, ..., I) -> (U, B * positions, I)."""
    return samples.reshape(updates, -1, samples.shape[-1])
