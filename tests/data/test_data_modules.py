"""What every data module promises: fixed private batches in fixed groups, disjoint splits, an honest description."""

import hashlib
import json
import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader

from gibench.data import Arrays, ImageDataModule, Photographs
from gibench.data.groups import grouped, update_id
from gibench.errors import ConfigurationError
from gibench.types import Batch

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))
UPDATES = st.integers(1, 40)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """250 random images (3, 4, 5) of five classes, about 50 of them to score."""
    draw = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("data") / "mine.npz"
    np.savez(file, images=draw.integers(0, 256, (250, 4, 5, 3), dtype=np.uint8), labels=np.arange(250) % 5)
    return file


def batches(module: ImageDataModule) -> list[Batch]:
    return list(module.predict_dataloader())


def update_ids(module: ImageDataModule) -> list[str]:
    return list(chain(*(batch.update_ids for batch in batches(module))))


@given(UPDATES, st.integers(2, 12))
def test_groups_are_consecutive_and_no_update_is_alone(updates: int, together: int) -> None:
    groups = grouped(updates, together)
    assert list(chain(*groups)) == list(range(updates))
    assert all(len(group) == together for group in groups[:-1])
    assert 2 <= len(groups[-1]) <= together + 1 or updates == 1


@given(UPDATES, st.integers(2, 12), st.integers(2, 12), st.integers(0, 3))
def test_updates_depend_on_the_seed_and_not_on_the_grouping(
    path: Path, updates: int, together: int, otherwise: int, seed: int
) -> None:
    ids = update_ids(Arrays(path, updates=updates, together=together, seed=seed))
    assert len(set(ids)) == updates
    assert ids == update_ids(Arrays(path, updates=updates, together=otherwise, seed=seed))
    assert ids == update_ids(Arrays(path, updates=40, seed=seed))[:updates]
    assert ids != update_ids(Arrays(path, updates=updates, seed=seed + 1)) or updates == 1


def test_a_batch_holds_the_images_that_its_ids_name(path: Path) -> None:
    stored = np.load(path)
    for batch in batches(Arrays(path, batch_size=4, updates=5, together=2, sampler="distinct")):
        assert batch.images.shape[1:] == (4, 3, 4, 5)
        for update, ids in enumerate(batch.image_ids):
            assert batch.update_ids[update] == hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
            for place, name in enumerate(ids):
                index = int(name.removeprefix("mine/"))
                expected = torch.tensor(stored["images"][index] / np.float32(255)).permute(2, 0, 1)
                torch.testing.assert_close(batch.images[update, place], expected)
                assert batch.labels[update, place] == stored["labels"][index]


@given(st.integers(0, 5), st.sets(st.integers(0, 10)))
def test_skip_leaves_out_exactly_the_finished_groups(path: Path, seed: int, finished: set[int]) -> None:
    module = Arrays(path, updates=11, together=3, seed=seed)
    everything = batches(module)
    ids = list(chain(*(batch.update_ids for batch in everything)))
    done = {ids[index] for index in finished}
    module.skip(done)
    kept = [batch for batch in everything if not done.issuperset(batch.update_ids)]
    assert [batch.update_ids for batch in batches(module)] == [batch.update_ids for batch in kept]
    for resumed, uninterrupted in zip(batches(module), kept, strict=True):
        assert torch.equal(resumed.images, uninterrupted.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_neither_workers_nor_copies_in_other_processes_change_a_batch(path: Path, workers: int) -> None:
    module = Arrays(path, batch_size=2, updates=9, together=2)
    expected = batches(module)
    copy = pickle.loads(pickle.dumps(module)).predict_dataloader()  # noqa: S301 - our own
    for batch, again in zip(expected, DataLoader(copy.dataset, batch_size=None, num_workers=workers), strict=True):
        assert torch.equal(batch.images, again.images)
        assert (batch.image_ids, batch.update_ids) == (again.image_ids, again.update_ids)


def test_the_order_of_the_ids_is_part_of_the_name_of_an_update() -> None:
    assert update_id(["a", "b"]) != update_id(["b", "a"])


def test_splits_are_disjoint_and_complete(path: Path) -> None:
    module = Arrays(path)
    splits = [module.split(name) for name in ("prior", "tune", "score")]
    assert sorted(chain(*(split.ids for split in splits))) == [f"mine/{index:05d}" for index in range(250)]
    for split in splits:
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        assert len(split.images) == len(split.labels) == len(split.ids)
    assert [len(split.ids) for split in splits] == list(module.describe()["split_sizes"].values())


def test_the_attacked_split_is_score_or_tune(path: Path) -> None:
    for name in ("score", "tune"):
        module = Arrays(path, updates=20, split_for_attack=name)
        attacked = {image for batch in batches(module) for ids in batch.image_ids for image in ids}
        assert attacked <= set(module.split(name).ids)


def test_changing_a_split_does_not_change_the_data_set(path: Path) -> None:
    module = Arrays(path, updates=5)
    before = module.describe()
    module.split("score").images.zero_()
    module.split("score").labels.zero_()
    assert module.describe() == before
    assert batches(module)[0].images.any()


def test_the_description_names_all_that_changes_the_batches_and_no_folder(path: Path, tmp_path: Path) -> None:
    description = Arrays(path).describe()
    assert json.loads(json.dumps(description)) == description
    assert str(path.parent) not in json.dumps(description)
    changes: list[dict[str, Any]] = [
        {"batch_size": 2},
        {"updates": 3},
        {"seed": 1},
        {"sampler": "distinct"},
        {"split_for_attack": "tune"},
    ]
    assert all(Arrays(path, **change).describe() != description for change in changes)
    assert Arrays(path, together=2).describe() == description
    stored = dict(np.load(path))
    scored = int(Arrays(path).split("score").ids[0].removeprefix("mine/"))
    stored["images"][scored] ^= 1
    np.savez(tmp_path / "mine.npz", **stored)
    other = Arrays(tmp_path / "mine.npz").describe()
    assert {key for key in description if description[key] != other[key]} == {"content_sha256"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; set it to 1 or more"),
        ({"updates": 0}, "updates is 0; set it to 1 or more"),
        ({"together": 1}, "together is 1; set it to 2 or more"),
        ({"sampler": "random"}, "choose one of natural, distinct, k_per_class, one_class"),
        ({"sampler": "k_per_class"}, "k that divides batch_size 1; got None"),
        ({"sampler": "k_per_class", "batch_size": 4, "k": 3}, "k that divides batch_size 4; got 3"),
        ({"k": 2}, "sampler 'natural' has no k"),
        ({"split_for_attack": "prior"}, "choose 'tune' or 'score'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Photographs(**arguments)


def test_a_run_longer_than_the_split_is_refused_before_it_starts(path: Path) -> None:
    module = Arrays(path, batch_size=16, updates=4)
    with pytest.raises(ConfigurationError, match=r"makes 3 updates of 16 images.*at most 3 \(asked: 4\)"):
        module.setup()


def test_an_unknown_split_is_refused(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no split 'test'"):
        Arrays(path).split("test")  # type: ignore[arg-type]


class _Collect(lightning.LightningModule):
    def predict_step(self, batch: Batch) -> tuple[str, ...]:
        assert batch.images.dtype == torch.float32
        return batch.update_ids


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*")  # Lightning's own
def test_the_trainer_sees_every_group_once(path: Path, tmp_path: Path) -> None:
    module = Arrays(path, batch_size=3, updates=7, together=3)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path, inference_mode=False
    )
    seen = trainer.predict(_Collect(), module)
    assert seen == [batch.update_ids for batch in batches(module)]
    assert [len(ids) for ids in seen] == [3, 4]  # the seventh has a partner


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_the_shipped_configurations_build(config: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=ImageDataModule, sub_configs=True)
    parsed = parser.parse_args([f"--data={config}", "--data.sampler=distinct"])
    assert parsed.data.init_args.together == 32  # the options of the base class are options of each, with its defaults
    module = parser.instantiate(parsed).data
    assert (module.name, module.updates) == ("images" if config.stem == "arrays" else config.stem, 100)
    assert module.sampler == "distinct"
