"""Pairs: the very updates that an attack sees, the same after a restart, and the same from a cache."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import small_victim
from small_pairs import Shrunk, client, equal, pairs, raw_of
from torch import Tensor

from gibench.clients import FedAvg
from gibench.defenses import GaussianNoise, SignCompression
from gibench.errors import ConfigurationError, NonFiniteError, StorageError
from inverters.cache import PairCache


def test_the_features_of_a_pair_are_those_of_the_update_that_the_client_sends() -> None:
    made = pairs([client(defense=SignCompression())], batch_sizes=(2,))
    made.fill()
    made.measure()
    step = next(iter(made.train_dataloader()))
    pair = made.on_after_batch_transfer(step, 0)
    observation = client(defense=SignCompression())(step[0])
    weights = dict(observation.victim.named_parameters())
    assert torch.equal(pair.features, made.features(observation.update, weights))
    assert torch.equal(pair.images, step[0].images)


def test_an_epoch_uses_each_image_once_and_none_of_another_split() -> None:
    made = pairs([client()], together=16)
    prior = set(Shrunk().split("prior")[2])
    seen = [name for batch, _, _ in made.train_dataloader() for ids in batch.image_ids for name in ids]
    assert len(seen) == len(set(seen)) > 0.9 * len(prior)
    assert set(seen) <= prior
    held_out = {name for batch, _, _ in made.val_dataloader() for ids in batch.image_ids for name in ids}
    assert held_out == set(Shrunk().split("tune")[2])


def test_fewer_images_are_a_part_of_more() -> None:
    few, more = pairs([client()], images=20), pairs([client()], images=50)
    assert set(few.prior[2]) < set(more.prior[2])
    assert len(few.prior[2]) == 20


def test_a_restart_changes_nothing_and_another_epoch_or_seed_does() -> None:
    noisy = client(defense=GaussianNoise(sigma=0.01))
    first = raw_of(pairs([noisy]), epoch=3)
    assert equal(first, raw_of(pairs([noisy]), epoch=3))
    assert not equal(first, raw_of(pairs([noisy]), epoch=4))
    assert not equal(first, raw_of(pairs([noisy], seed=1), epoch=3))


def test_a_defense_draws_anew_for_an_image_in_each_epoch() -> None:
    made = pairs([client(defense=GaussianNoise(sigma=0.01))], images=1, together=1)
    assert not equal(raw_of(made, 0), raw_of(made, 1))
    quiet = pairs([client()], images=1, together=1)
    assert equal(raw_of(quiet, 0), raw_of(quiet, 1))


def test_steps_draw_among_batch_sizes_and_clients() -> None:
    made = pairs([client(), client(seed=1)], batch_sizes=(1, 3), together=8)
    drawn = {(batch.images.shape[1], number) for batch, number, _ in made.train_dataloader()}
    assert drawn == {(1, 0), (1, 1), (3, 0), (3, 1)}
    shown = {(batch.images.shape[1], number) for batch, number, _ in made.val_dataloader()}
    assert shown == drawn


def test_every_kind_of_client_makes_pairs() -> None:
    local = FedAvg(small_victim(), steps=2, rate=0.1)
    made = pairs([local], batch_sizes=(2,))  # type: ignore[list-item]
    made.fill()
    made.measure()
    step = next(iter(made.train_dataloader()))
    weights = dict(local.victim.named_parameters())
    expected = made.features(local(step[0]).update, weights)
    assert torch.equal(made.on_after_batch_transfer(step, 0).features, expected)


def cached(folder: Path, **arguments: Any) -> list[Tensor]:
    made = pairs([client()], cache=folder, batch_sizes=(2,), **arguments)
    made.fill()
    made.measure()
    return raw_of(made)


def test_a_cache_holds_the_pairs_that_would_be_made(tmp_path: Path) -> None:
    made = pairs([client()], cache=tmp_path, batch_sizes=(2,))
    made.fill()
    made.measure()
    for step in made.train_dataloader():
        fresh = made.features.standardized(made.raw(step[0], 0))
        assert torch.equal(made.on_after_batch_transfer(step, 0).features, fresh)
    assert not equal(raw_of(made, 0), raw_of(made, 1))


def test_a_cache_is_resumed_and_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cached(tmp_path / "whole")
    made: list[int] = []

    def interrupt(self: Any, step: Any) -> Tensor:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return original(self, step)

    from inverters.pairs import Pairs

    original = Pairs._made
    with monkeypatch.context() as patched:
        patched.setattr(Pairs, "_made", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cached(tmp_path / "cut")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cut").glob("*.npy")}
    assert len(kept) == 2
    assert equal(cached(tmp_path / "cut"), whole)
    assert all(file.stat().st_mtime_ns == before for file, before in kept.items())

    damaged = next(iter(kept))
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert equal(cached(tmp_path / "cut"), whole)


def test_a_cache_of_other_pairs_is_refused(tmp_path: Path) -> None:
    cached(tmp_path)
    with pytest.raises(ConfigurationError, match="pairs of another training"):
        cached(tmp_path, seed=1)


def test_a_full_disk_is_said_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inverters.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"needs .* GiB for its pairs"):
        cached(tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PairCache(tmp_path, settings={}, row=(1, 4))
    parts: list[Callable[[], Tensor]] = [lambda: torch.ones(3, 1, 4), lambda: torch.zeros(3, 1, 4)]
    cache.fill(parts[:1], rows=3)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            cache.fill(parts, rows=3)
    assert json.loads((tmp_path / "checksums.json").read_text()).keys() == {"pairs-000000.npy"}
    cache.fill([pytest.fail, parts[1]], rows=3)
    assert cache[torch.tensor([5, 0])].sum(2).tolist() == [[0.0], [4.0]]


def test_pairs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    cache = PairCache(tmp_path, settings={}, row=(1, 1))
    with pytest.raises(NonFiniteError, match="hold NaN"):
        cache.fill([lambda: torch.full((2, 1, 1), torch.nan)], rows=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_sizes": ()}, "at least 1"),
        ({"together": 0}, "at least 1"),
        ({"images": 0}, "at least 1"),
        ({"batch_sizes": (4,), "images": 3}, "fewer images than one update of 4"),
        ({"batch_sizes": (1, 2), "cache": "x"}, "leave it out"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        pairs([client()], **arguments)


def test_images_that_do_not_fit_the_victim_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="set the victim's image_shape"):
        pairs([client(victim=small_victim(num_classes=3))])
    with pytest.raises(ConfigurationError, match="set the victim's image_shape"):
        pairs([client(victim=small_victim(side=16))])
