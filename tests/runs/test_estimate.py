"""The estimate counts the right things, and the progress of a search reaches those who watch."""

import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import batch_of, small_victim

from gibench.attacks import inverting_gradients
from gibench.clients import FedSGD
from gibench.progress import Step, watching
from gibench.runs.configuration import load
from gibench.runs.estimate import in_words, seconds
from gibench.runs.plan import Job, plan
from gibench.runs.suite import cells


def jobs(path: Path, **settings: int) -> dict[str, Job]:
    tree = load(path)
    tree["attack"]["init_args"].update(settings)
    path.write_text(yaml.safe_dump(tree))
    return {job.name: job for job in plan(cells(load(path), name="one", size="small"), [], None)}


def test_the_estimate_grows_with_updates_restarts_and_steps(single: Path) -> None:
    """Timings differ from call to call, so the factors are large and the tolerance wide."""
    short = jobs(single, steps=10, restarts=1)
    few = seconds(short["inverting_gradients"], 6)
    many = seconds(jobs(single, steps=1000, restarts=5)["inverting_gradients"], 60)
    assert many > 500 * few
    assert seconds(short["floor: inverting_gradients prior alone"], 6) == 0
    assert seconds(short["inverting_gradients"], 0) == 0


def test_the_estimate_is_near_the_truth(single: Path) -> None:
    job = jobs(single, steps=150, restarts=1)["inverting_gradients"]
    group = next(iter(job.data.predict_dataloader()))
    expected = seconds(job, len(group.update_ids))
    observation = job.client(group)
    start = time.perf_counter()
    job.attack(observation)
    assert expected / 10 < time.perf_counter() - start < expected * 10  # another program may run beside it


@pytest.mark.parametrize(("total", "words"), [(12, "about 12 s"), (600, "about 10 min"), (9000, "about 2.5 h")])
def test_durations_are_for_people(total: float, words: str) -> None:
    assert in_words(total) == words


def test_watchers_see_every_step_and_change_nothing() -> None:
    observation = FedSGD(small_victim())(batch_of(2, 1))
    attack = inverting_gradients(steps=5)
    plain = attack(observation)
    seen: list[Step] = []
    pictures: list[torch.Tensor] = []
    with watching(seen.append), watching(lambda step: pictures.append(step.images())):
        watched = attack(observation)
    attack(observation)
    assert [step.done for step in seen] == [1, 2, 3, 4, 5]
    assert {step.total for step in seen} == {5}
    assert pictures[0].shape == (2, 1, 3, 8, 8)
    assert torch.equal(plain.images, watched.images)
