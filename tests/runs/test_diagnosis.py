"""Scenarios that differ in their Gaussian noise alone share singular values; whatever else differs does not."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import gibench.runs.diagnosis as room
from gibench.diagnostics import Jacobian, Spectrum, read_identifiability, unbiased_mse_bound
from gibench.runs.plan import Job, plan
from gibench.runs.suite import Cell


def job(scenario: str, *, seed: int = 0, labels: str = "ordered", defense: str | None = None, **settings: Any) -> Job:
    threat = {"victim": "initial", "batch_norm": "absent", "labels": labels, "defense": "known" if defense else "none"}
    path = f"gibench.defenses.{defense}"
    client = {
        "victim": {
            "class_path": "gibench.victims.mlp",
            "init_args": {"seed": seed, "width": 4, "image_shape": [3, 32, 32]},
        },
        "defense": {"class_path": path, "init_args": settings} if defense else None,
        "threat_model": threat,
    }
    parts = {
        "data": {"class_path": "gibench.data.Photographs", "init_args": {"updates": 2, "batch_size": 1}},
        "client": {"class_path": "gibench.clients.FedSGD", "init_args": client},
        "attack": {"class_path": "gibench.attacks.inverting_gradients", "init_args": {"steps": 1}},
    }
    (found,) = [each for each in plan([Cell(scenario, "ig", parts)], (), None) if each.name == "ig"]
    found.data.prepare_data()
    found.data.setup()
    return found


def spectrum(jacobian: Jacobian) -> Spectrum:
    values = jacobian.update.abs()[: jacobian.columns].sort(descending=True).values
    return Spectrum(values, jacobian.rows, 1e-12)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each Jacobian whose singular values are asked for; cheap numbers stand for them."""
    calls: list[int] = []

    def cheap(jacobian: Jacobian) -> Spectrum:
        calls.append(1)
        return spectrum(jacobian)

    monkeypatch.setattr(room, "spectrum_of", cheap)
    return calls


def test_noises_share_singular_values(computed: list[int], tmp_path: Path) -> None:
    spectra, console = room.Spectra(), Console(quiet=True)
    for sigma in (1e-3, 1e-2):
        noisy = job(f"sigma{sigma}", defense="GaussianNoise", sigma=sigma)
        room.diagnose(tmp_path, noisy, updates=2, spectra=spectra, console=console)
    room.diagnose(tmp_path, job("none"), updates=2, spectra=spectra, console=console)
    assert len(computed) == 2  # two updates
    found = read_identifiability(tmp_path / room.FILE)
    assert [(record.scenario, record.own_noise) for record in found] == [
        *[("sigma0.001", True)] * 2,
        *[("sigma0.01", True)] * 2,
        *[("none", False)] * 2,
    ]
    weak, strong = (found[place].floors[0] for place in (0, 2))
    assert (weak.sigma, strong.sigma) == (1e-3, 1e-2)
    assert weak.mse_unbiased is not None
    assert strong.mse_unbiased == pytest.approx(100 * weak.mse_unbiased)
    assert found[0].update_id != found[1].update_id
    assert found[0].largest != found[1].largest
    again = job("again")
    client = room.in_double(again.client)
    batch = next(room.first_updates(again.data, 1)).to(client.victim.mean.dtype)
    alone = spectrum(Jacobian(client.simulate, batch.images[0], batch.labels[0]))
    assert weak.mse_unbiased == pytest.approx(unbiased_mse_bound(alone, sigma=1e-3))


def test_other_victims_and_defenses_do_not(computed: list[int], tmp_path: Path) -> None:
    spectra, console = room.Spectra(), Console(quiet=True)
    jobs = [
        job("plain"),
        job("other weights", seed=1),
        job("clipped", defense="DPSGD", clip=1.0, noise_multiplier=0.1),
    ]
    for each in jobs:
        room.diagnose(tmp_path, each, updates=1, spectra=spectra, console=console)
    assert len(computed) == 3
    room.diagnose(tmp_path, jobs[0], updates=1, spectra=spectra, console=console)  # it is in the file
    assert len(computed) == 3
