"""ATS undone: from exact and from inexact reconstructions, with the transformation known and with it guessed."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import batch_of, small_victim
from torch import Tensor

from gibench.attacks import UndoTransformation, WrongUpdate, inverting_gradients
from gibench.clients import FedSGD
from gibench.data.photographs import PHOTOGRAPHS, patches
from gibench.defenses import ATS, GaussianNoise
from gibench.errors import ConfigurationError, ThreatModelError
from gibench.likelihoods import Flat
from gibench.runs.estimate import seconds
from gibench.runs.plan import plan
from gibench.runs.suite import Cell
from gibench.types import Observation, ThreatModel


def photographs() -> Tensor:
    """60 patches as 60 updates of one image."""
    images = np.concatenate([patches(file)[0] for file in PHOTOGRAPHS])[:590:10]
    return torch.from_numpy(images).permute(0, 3, 1, 2).double()[:, None] / 255


def psnr(images: Tensor, truth: Tensor) -> float:
    return -10 * (images - truth).square().flatten(1).mean(1).clamp_min(1e-10).log10().mean().item()


def undo() -> UndoTransformation:
    return UndoTransformation(attack=inverting_gradients(steps=2, signed=False, restarts=2))


@pytest.mark.parametrize(
    ("policy", "transformed", "known", "estimated"),
    [("7-4-15", 12.0, 28.0, 27.0), ("21-13-3", 9.0, 17.0, 16.5), ("21-13-3+7-4-15", 10.0, 21.5, 19.5)],
)
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_originals_come_back(policy: str, transformed: float, known: float, estimated: float, noise: float) -> None:
    """The transformed images, exact or nearly: within the stated decibels, on average over photographs."""
    truth = photographs()
    defense = ATS(policy=policy)
    drawn = defense.draw(1, tuple(range(len(truth))))
    images = defense.transform(truth, drawn)
    assert psnr(images, truth) < transformed
    source = torch.Generator().manual_seed(0)
    images = (images + noise * torch.randn(images.shape, generator=source, dtype=images.dtype)).clamp(0, 1)
    lost = 3.0 if noise else 0.0
    assert psnr(undo().undo(images, defense, drawn), truth) > known - lost
    assert psnr(undo().undo(images, defense), truth) > estimated - lost


@pytest.mark.parametrize("number", [0, 1, 12, 14, 20, 26])
def test_what_can_be_inverted_is_inverted_exactly(number: int) -> None:
    """Invert, contrast, color, sharpness, brightness, where nothing is clipped."""
    truth = 0.4 + 0.2 * photographs()
    defense = ATS(policy=str(number))
    drawn = defense.draw(1, tuple(range(len(truth))))
    images = defense.transform(truth, drawn)
    assert (images - truth).abs().max() > 0.01
    torch.testing.assert_close(undo().undo(images, defense, drawn), truth, rtol=0, atol=2e-3)


@pytest.mark.parametrize("number", [2, 3, 6, 7, 10])
def test_moved_pixels_come_back_to_their_places(number: int) -> None:
    """Far from the border a smooth image is what it was, after shears and rotations too."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    truth = torch.stack([rows, columns, (rows + columns) / 2]).double().expand(6, 1, 3, 32, 32)
    defense = ATS(policy=str(number))
    drawn = defense.draw(1, tuple(range(6)))
    images = defense.transform(truth, drawn)
    found = undo().undo(images, defense, drawn)
    margin = {2: 2, 3: 15}.get(number, 10)
    inside = (..., slice(margin, 32 - margin), slice(margin, 32 - margin))
    assert (images - truth)[inside].abs().max() > 0.04
    assert (found - truth)[inside].abs().max() < 0.04


def observe(updates: int, **flags: Any) -> Observation:
    known = {"victim": "initial", "batch_norm": "absent", "defense": "known", **flags}
    sender = FedSGD(small_victim(), defense=ATS(policy="21-13-3+7-4-15"), threat_model=ThreatModel(**known))
    return sender.double()(batch_of(updates, 2).to(torch.float64))


@pytest.mark.parametrize("randomness", ["unknown", "known"])
def test_it_keeps_the_contract_of_attacks(randomness: str) -> None:
    """Candidates are undone too, rows are independent, and it is the wrapped attack that is undone."""
    attack, observation = undo(), observe(3, defense_randomness=randomness)
    before = copy.deepcopy(observation.update)
    found = attack(observation)
    wrapped = attack.attack(observation)
    assert found.images.shape == (3, 2, 3, 8, 8)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert found.candidates is not None
    assert (found.candidates == found.images).flatten(2).all(2).any(0).all()
    torch.testing.assert_close(
        found.images, attack.undo(wrapped.images, ATS(policy="21-13-3+7-4-15"), observation.randomness)
    )
    torch.testing.assert_close(found.objective, wrapped.objective)
    alone = attack(observation.select([1]))
    torch.testing.assert_close(alone.images[0], found.images[1], rtol=1e-6, atol=1e-6)
    assert all(torch.equal(before[name], value) for name, value in observation.update.items())
    assert torch.equal(WrongUpdate(attack)(observation).images, attack(observation.select([1, 2, 0])).images)


def test_a_lost_reconstruction_stays_lost() -> None:
    images = photographs()[:3].clone()
    images[1] = torch.nan
    found = undo().undo(images, ATS())
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


def test_it_needs_ats_and_to_know_of_it() -> None:
    attack = undo()
    with pytest.raises(ThreatModelError, match="defense"):
        attack(observe(1, defense="unknown"))
    other = FedSGD(small_victim(), defense=GaussianNoise(sigma=0.1))(batch_of(1, 1))
    with pytest.raises(ThreatModelError, match="ATS"):
        attack(other)
    with pytest.raises(ConfigurationError, match="positive"):
        UndoTransformation(attack=inverting_gradients(), noise=0)


def test_runs_plan_and_estimate_it() -> None:
    """Configured by class paths, it is estimated as the attack that it wraps, also inside a control."""
    wrapped = {"class_path": "gibench.attacks.inverting_gradients", "init_args": {"steps": 200}}
    known = {"victim": "initial", "batch_norm": "absent", "defense": "known"}
    tree = {
        "data": {"class_path": "gibench.data.Photographs", "init_args": {"updates": 2, "together": 2}},
        "client": {
            "class_path": "gibench.clients.FedSGD",
            "init_args": {
                "victim": {"class_path": "gibench.victims.lenet"},
                "defense": {"class_path": "gibench.defenses.ATS", "init_args": {"policy": "7-4-15"}},
                "threat_model": known,
            },
        },
        "attack": {"class_path": "gibench.attacks.UndoTransformation", "init_args": {"attack": wrapped}},
    }
    job, alone = plan([Cell("ats", "undo", tree, wrong_update=False)], [], None)
    assert isinstance(job.attack, UndoTransformation)
    assert alone.name == "floor: undo prior alone"  # rule R5, through the wrapper
    assert isinstance(alone.attack, UndoTransformation)
    assert isinstance(alone.attack.attack.likelihood, Flat)
    assert seconds(alone, 60) == 0
    assert seconds(job, 60) > 0
    assert seconds(replace(job, attack=WrongUpdate(job.attack)), 60) > 0
    assert seconds(job, 0) == 0
