"""The five records refuse what breaks their docstrings."""

import pytest
import torch
from helpers import batch_of, small_victim
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gibench.clients import FedSGD
from gibench.errors import ImageRangeError, NonFiniteError, ShapeError, ThreatModelError
from gibench.types import Batch, Observation, ThreatModel, all_finite


def images(value: float = 0.5, *, count: int = 2) -> torch.Tensor:
    return torch.full((count, 1, 3, 8, 8), value)


def make(pixels: torch.Tensor, labels: torch.Tensor | None = None) -> Batch:
    rows = len(pixels)
    return Batch(
        images=pixels,
        labels=torch.zeros(rows, 1, dtype=torch.int64) if labels is None else labels,
        image_ids=tuple((f"i{row}",) for row in range(rows)),
        update_ids=tuple(f"u{row}" for row in range(rows)),
    )


@pytest.mark.parametrize(
    ("pixels", "error"),
    [
        (images(1.5), ImageRangeError),
        (images(-0.1), ImageRangeError),
        ((images() - 0.48) / 0.25 - 1, ImageRangeError),
        (images(float("nan")), NonFiniteError),
        (images(float("inf")), NonFiniteError),
        (images()[0], ShapeError),
        (images()[:0], ShapeError),
        ((images() * 255).to(torch.uint8), ImageRangeError),
    ],
)
def test_images_that_are_not_pixels_are_refused(pixels: torch.Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        make(pixels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@given(
    entries=st.lists(
        st.sampled_from([0.0, 1.0, -2.5, 6e4, -6e4, float("inf"), float("-inf"), float("nan")]), min_size=1, max_size=9
    ),
    largest=st.booleans(),
)
def test_all_finite_looks_at_every_entry(dtype: torch.dtype, entries: list[float], largest: bool) -> None:
    tensor = torch.tensor(entries).to(dtype)
    if largest:  # sums overflow
        tensor = torch.where(tensor.abs() == 6e4, torch.full_like(tensor, torch.finfo(dtype).max), tensor)
    assert all_finite(tensor) == bool(torch.isfinite(tensor).all())


def test_labels_and_names_must_fit() -> None:
    with pytest.raises(ShapeError):
        make(images(), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ShapeError):
        make(images(), torch.zeros(2, 1))
    with pytest.raises(ShapeError):
        Batch(images=images(), labels=torch.zeros(2, 1, dtype=torch.int64), image_ids=(("a",),), update_ids=("u",))


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError):
        make(images()).images = images()


def test_the_threat_model_has_no_hidden_stage_or_regime() -> None:
    with pytest.raises(ValidationError, match="batch_norm"):
        ThreatModel(victim="initial")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="victim"):
        ThreatModel(batch_norm="absent")  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        ThreatModel(victim="initial", batch_norm="absent", labels="all")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        ThreatModel(victim="initial", batch_norm="absent", lables="none")  # type: ignore[call-arg]


def test_the_observation_has_no_room_for_private_images() -> None:
    assert set(Observation.model_fields) == {
        *("update", "simulate", "victim", "threat_model", "image_shape", "num_classes", "batch_size"),
        *("labels", "label_counts", "batch_statistics", "defense", "randomness", "seeds", "bytes_per_update"),
    }


def test_selecting_rows_keeps_each_row_and_may_repeat_it() -> None:
    observation = FedSGD(small_victim())(batch_of(3, 2))
    chosen = observation.select([2, 0, 2])
    assert chosen.updates == 3
    assert chosen.seeds == tuple(observation.seeds[row] for row in (2, 0, 2))
    for name, update in observation.update.items():
        assert torch.equal(chosen.update[name], update[[2, 0, 2]])
    assert torch.equal(chosen.labels, observation.labels[[2, 0, 2]])  # type: ignore[index, arg-type]


def test_a_hidden_batch_size_is_an_error_to_read() -> None:
    hidden = ThreatModel(victim="initial", batch_norm="absent", batch_size="unknown", labels="set")
    observation = FedSGD(small_victim(), threat_model=hidden)(batch_of(1, 1))
    with pytest.raises(ThreatModelError, match="batch_size"):
        observation.known_batch_size()


def test_a_hidden_batch_size_shows_in_no_other_field() -> None:
    hidden = ThreatModel(victim="initial", batch_norm="absent", batch_size="unknown", labels="set")
    client = FedSGD(small_victim(), threat_model=hidden)
    one, four = client(batch_of(2, 1)), client(batch_of(2, 4))
    assert four.batch_size is four.labels is None
    assert four.bytes_per_update == one.bytes_per_update
    assert {name: tensor.shape for name, tensor in four.update.items()} == {
        name: tensor.shape for name, tensor in one.update.items()
    }
