"""Features of updates: against plain loops, and what they are invariant to."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import batch_of, fully_connected, small_victim
from pydantic import ValidationError
from torch import Tensor, nn

from gibench.clients import FedSGD
from gibench.errors import ConfigurationError, NonFiniteError, ShapeError
from gibench.hashing import FeatureHash
from gibench.types import Update
from gibench.victims import Victim
from inverters import FeatureSettings, UpdateFeatures
from inverters.card import shapes_of

SMALL = FeatureSettings(buckets=64)


def observed(victim: Victim, updates: int = 5, size: int = 1) -> tuple[FedSGD, Update, dict[str, Tensor]]:
    client = FedSGD(victim)
    return client, client(batch_of(updates, size)).update, dict(client.victim.named_parameters())


def features(client: FedSGD, **settings: Any) -> UpdateFeatures:
    return UpdateFeatures(shapes=shapes_of(client), settings=FeatureSettings(**{"buckets": 64, **settings}))


def test_one_token_is_the_hash_of_the_whole_update() -> None:
    client, update, weights = observed(small_victim())
    hashed = FeatureHash(shapes=shapes_of(client), buckets=64, seed=3)(update)
    assert torch.equal(features(client, seed=3).raw(update, weights)[:, 0], hashed)


def test_without_buckets_every_coordinate_is_a_feature() -> None:
    client, update, weights = observed(small_victim())
    told = features(client, buckets=None).raw(update, weights)[:, 0]
    assert torch.equal(told, torch.cat([update[name].flatten(1) for name in update], 1))


def test_tokens_are_the_hashes_of_the_parameters() -> None:
    client, update, weights = observed(small_victim())
    told = features(client, tokens=True).raw(update, weights)
    assert told.shape == (5, len(update), 64)
    for token, name in enumerate(update):
        alone = FeatureHash(shapes={name: update[name].shape[1:]}, buckets=64, seed=0)
        assert torch.equal(told[:, token], alone({name: update[name]}))


def test_the_order_of_the_names_changes_nothing() -> None:
    client, update, weights = observed(small_victim())
    turned = dict(reversed(update.items()))
    for settings in ({}, {"tokens": True}, {"relative": True}, {"buckets": None}):
        made = features(client, **settings)
        assert torch.equal(made.raw(update, weights), made.raw(turned, weights))


def test_inputs_are_those_of_the_fully_connected_layers() -> None:
    """Of one image the gradient of a layer is an outer product: the input is in it, up to rounding."""
    client, update, weights = observed(fully_connected())
    seen: list[Tensor] = []
    linear = [module for module in client.victim.modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(lambda _, given, __: seen.append(given[0])) for module in linear]
    client.victim(batch_of(5, 1).images[:, 0])
    for hook in hooks:
        hook.remove()
    told = features(client, buckets=1, inputs=True).raw(update, weights)[:, 0, 1:]
    assert torch.allclose(told, torch.cat([each.flatten(1) for each in seen], 1), atol=1e-4)


def test_relative_features_do_not_say_how_long_an_update_is() -> None:
    client, update, weights = observed(small_victim())
    longer = {name: 7 * tensor for name, tensor in update.items()}
    made = features(client, relative=True)
    one, other = made.raw(update, weights)[:, 0], made.raw(longer, weights)[:, 0]
    assert torch.allclose(one[:, :64], other[:, :64], atol=1e-5)
    assert torch.allclose(other[:, 64:] - one[:, 64:], torch.full((5, len(update)), 7.0).log(), atol=1e-4)


def test_weights_are_features_of_the_victim_alone() -> None:
    client, update, weights = observed(small_victim())
    made = features(client, weights=32)
    told = made.raw(update, weights)[:, 0, 64:]
    assert torch.equal(told, told[:1].expand(5, -1))
    assert not torch.equal(told, made.raw(update, {name: 2 * value for name, value in weights.items()})[:, 0, 64:])


def test_features_are_standardized_on_what_they_were_fitted_to() -> None:
    client, update, weights = observed(small_victim(), updates=200)
    made = features(client)
    raw = made.raw(update, weights)
    raw[..., 0] = 3.0
    made.fit(raw)
    told = made.standardized(raw)
    assert (told[..., 0] == 0).all()
    assert torch.allclose(told[..., 1:].mean(0), torch.zeros(()), atol=1e-4)
    assert torch.allclose(told[..., 1:].std(0), torch.ones(()), atol=1e-4)
    assert torch.equal(made(update, weights)[..., 1:], told[..., 1:])
    plain = features(client, standardize=False)
    plain.fit(raw)
    assert torch.equal(plain(update, weights), plain.raw(update, weights))


def test_updates_of_another_victim_are_refused() -> None:
    client, update, weights = observed(small_victim())
    made = features(client)
    first = next(iter(update))
    odd: list[tuple[Update, str]] = [
        ({name: tensor for name, tensor in update.items() if name != first}, "lacks"),
        (update | {"extra": torch.zeros(5, 2)}, "adds extra"),
        (update | {first: update[first][..., :1]}, "another shape"),
    ]
    for wrong, words in odd:
        with pytest.raises(ShapeError, match=words):
            made(wrong, weights)


def test_pairs_that_are_not_finite_are_refused() -> None:
    client, update, weights = observed(small_victim())
    made = features(client)
    raw = made.raw(update, weights)
    raw[0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        made.fit(raw)


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda client: features(client, buckets=0), ValidationError),
        (lambda client: features(client, weights=-1), ValidationError),
        (lambda _: FeatureSettings(bucket=3), ValidationError),  # type: ignore[call-arg]
        (lambda client: features(client, buckets=None, tokens=True), ConfigurationError),
        (
            lambda _: UpdateFeatures(shapes={"only.weight": (3, 2)}, settings=FeatureSettings(buckets=2, inputs=True)),
            ConfigurationError,
        ),
    ],
)
def test_bad_settings(build: Callable[[FedSGD], Any], error: type[Exception]) -> None:
    client, _, _ = observed(small_victim(), updates=1)
    with pytest.raises(error):
        build(client)
