"""The limit: errors held against their own updates' bounds, words that follow them, and a bound that is reached."""

import csv
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch
from helpers import batch_of, small_victim
from test_report_identifiability import diagnosis
from test_report_page import HOSTILE, Page

from gibench.attacks import GradientMatching
from gibench.clients import FedSGD
from gibench.diagnostics import (
    Identifiability,
    Jacobian,
    NoiseFloor,
    exact_spectrum,
    unbiased_mse_bound,
    write_identifiability,
)
from gibench.labels import Given
from gibench.likelihoods import Gaussian
from gibench.records import RunFolder
from gibench.report import write_report
from gibench.report.limit import Limit, collect_limits, number
from gibench.report.limit_chart import Line, draw_limit
from gibench.report.summary import group
from gibench.search import LevenbergMarquardt, Pixels
from gibench.types import Record, Update

MakeRecord = Callable[..., Record]
SIGMAS = (1e-4, 1e-3, 1e-2, 1e-1)
TAU = 1 / 12


def gain(update: int) -> float:
    """Error over variance of the noise without a prior: another one for each update."""
    return 100.0 * (1 + update)


def least(sigma: float, update: int) -> float:
    """The Bayesian bound, of singular values that are all alike."""
    return 1 / (1 / (gain(update) * sigma**2) + 1 / TAU)


def floor(sigma: float, update: int, **changes: Any) -> NoiseFloor:
    mse, unbiased = least(sigma, update), gain(update) * sigma**2
    return NoiseFloor(
        relative=4 * sigma,
        sigma=sigma,
        directions=1.0,
        directions_error=0.0,
        bits=1.0,
        bits_error=0.0,
        psnr=-10 * math.log10(mse),
        psnr_error=0.0,
        psnr_unbiased=-10 * math.log10(unbiased),
        **{"mse": mse, "mse_unbiased": unbiased} | changes,
    )


def diagnoses(updates: int = 3, **changes: Any) -> list[Identifiability]:
    return [
        diagnosis(u, scenario=f"noise-{sigma}", own_noise=True, floors=(floor(sigma, u, **changes),))
        for sigma in SIGMAS
        for u in range(updates)
    ]


def answers(record: MakeRecord, attack: str, mse: Callable[[float, int], float], **fields: Any) -> list[Record]:
    return [
        record(attack, u, mse=mse(sigma, u), psnr=-10 * math.log10(mse(sigma, u)), scenario=f"noise-{sigma}", **fields)
        for sigma in SIGMAS
        for u in range(4)
    ]


def collected(folder: Path, found: list[Identifiability], records: list[Record]) -> list[Limit]:
    write_identifiability(found, folder / "identifiability.jsonl")
    series = {"noise": [f"noise-{sigma}" for sigma in SIGMAS], "other": ["lenet"]}
    return collect_limits(folder, series, group(records), {"lm": "c0", "ig": "c1", HOSTILE: "c2"})


def test_errors_are_held_against_the_bounds_of_their_own_updates(record: MakeRecord, tmp_path: Path) -> None:
    records = answers(record, "lm", lambda sigma, u: 1.5 * least(sigma, u))
    records += answers(record, "floor: mean image", lambda _sigma, u: 0.05 + 0.01 * u)
    (limit,) = collected(tmp_path, diagnoses(), records)
    assert [level.sigma for level in limit.levels] == list(SIGMAS)
    for level in limit.levels:
        assert level.updates == 3  # the fourth was attacked, but not diagnosed
        assert level.least == pytest.approx(sum(least(level.sigma, u) for u in range(3)) / 3)
        assert level.unbiased == pytest.approx(200 * level.sigma**2)
        assert level.floor == pytest.approx(0.06)
        (reached,) = level.reached
        assert reached.mse.value == pytest.approx(1.5 * level.least)
        assert (reached.of_least.value, reached.of_least.low) == pytest.approx((1.5, 1.5))
        assert reached.of_unbiased is not None
        expected = sum(1.5 * least(level.sigma, u) / (gain(u) * level.sigma**2) for u in range(3)) / 3
        assert reached.of_unbiased.value == pytest.approx(expected)
        assert reached.close == 3
    lines = list(csv.DictReader((tmp_path / "limit.csv").open()))
    assert len(lines) == 12
    assert float(lines[-1]["mse"]) == pytest.approx(1.5 * float(lines[-1]["least_mse"]), rel=1e-5)
    assert float(lines[0]["least_mse_unbiased"]) == pytest.approx(1e-6, rel=1e-5)


def test_what_is_said_follows_the_ratios(record: MakeRecord, tmp_path: Path) -> None:
    factors = {1e-4: 1.9, 1e-3: 0.6, 1e-2: 2.1, 1e-1: 0.4}
    records = answers(record, "lm", lambda sigma, u: factors[sigma] * least(sigma, u))
    (limit,) = collected(tmp_path, diagnoses(), records)
    assert limit.findings[0] == (
        "lm is within a factor of two of the least expected error from σ = 10⁻⁴ to 10⁻³, above twice it at σ = 10⁻² "
        "and below half of it at σ = 10⁻¹."
    )
    assert limit.findings[1].startswith("From σ = 10⁻¹ on the two bounds are more than a factor of two apart")
    assert [number(sigma) for sigma in (1e-6, 1.0, 0.003)] == ["10⁻⁶", "1", "0.003"]


def test_bounds_above_the_ceiling_and_of_estimates(record: MakeRecord, tmp_path: Path) -> None:
    """The errors count, not the PSNRs that 100 dB cut off; records without errors still have their PSNRs."""
    records = answers(record, "lm", least)
    nothing = dict.fromkeys(("psnr_unbiased", "mse_unbiased"))
    (limit,) = collected(tmp_path, diagnoses(mse=1e-14, mse_unbiased=None), records)
    assert limit.levels[0].least == pytest.approx(1e-14)
    (limit,) = collected(tmp_path, diagnoses(mse=None, mse_unbiased=None), records)
    assert limit.levels[0].least == pytest.approx(sum(least(1e-4, u) for u in range(3)) / 3)
    assert limit.levels[0].unbiased == pytest.approx(200 * 1e-8)
    unknown = [
        found.model_copy(update={"floors": (found.floors[0].model_copy(update=nothing),)}) for found in diagnoses()
    ]
    (limit,) = collected(tmp_path, unknown, records)
    assert limit.levels[0].unbiased is None
    assert limit.levels[0].reached[0].of_unbiased is None


def test_where_there_is_no_noise_of_several_strengths_there_is_no_limit(record: MakeRecord, tmp_path: Path) -> None:
    records = answers(record, "lm", least)
    assert collected(tmp_path, [], records) == []
    assert collected(tmp_path, diagnoses()[:3], records) == []  # one strength
    assert collected(tmp_path, [r.model_copy(update={"own_noise": False}) for r in diagnoses()], records) == []
    refused = answers(record, "lm", least, status="refused", reason="no")
    assert collected(tmp_path, diagnoses(), refused) == []
    assert not (tmp_path / "limit.csv").exists()


def test_points_stand_at_noise_and_error(record: MakeRecord, tmp_path: Path) -> None:
    (limit,) = collected(tmp_path, diagnoses(), answers(record, "lm", lambda s, u: 100 * least(s, u)))
    svg = ET.fromstring(limit.figure)  # noqa: S314 - our own drawing
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in svg.iter("circle")]
    assert len(dots) == 4
    steps = [after[0] - before[0] for before, after in pairwise(dots)]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.11)  # decades are equally far apart
    paths = {path.findtext("title"): path.attrib["d"] for path in svg.iter("path")}
    heights = {name: float(path[1:].split("L")[0].split()[1]) for name, path in paths.items()}
    assert heights["lm"] < heights["Bayesian bound"] <= heights["unbiased bound"] + 0.2
    assert (tmp_path / "limit-noise.svg").read_text().count("<circle") == 4
    exact = draw_limit([Line("bound", "bound", [(1e-3, 1e-6), (1e-2, 1e-4)])])
    assert "bound" in {text.text for text in exact.iter("text")}


def test_the_page_shows_the_limit_and_escapes_names(
    record: MakeRecord, tmp_path: Path, manifest: dict[str, Any]
) -> None:
    folder = RunFolder(tmp_path)
    folder.records.append(answers(record, "lm", lambda sigma, u: 1.5 * least(sigma, u)))
    folder.records.append(answers(record, HOSTILE, lambda sigma, u: 1e5 * least(sigma, u)))
    write_identifiability(diagnoses(), tmp_path / "identifiability.jsonl")
    assert 'id="limit-1"' not in write_report(tmp_path).read_text()  # no series
    scenarios = {f"noise-{sigma}": sigma for sigma in SIGMAS}
    folder.save_manifest(manifest | {"series": {"noise": {"variable": "sigma", "scenarios": scenarios}}})
    page = Page(write_report(tmp_path))
    assert "how close attacks come to the least expected error" in page.text
    assert "lm is within a factor of two of the least expected error from σ = 10⁻⁴ to 10⁻¹." in page.text
    section = page.source.split('id="limit-1"')[1].split("</section>")[0]
    assert section.count("<circle") == 8
    assert "3 of 3" in section
    assert "1.50" in section
    assert "1.0e+05" in section
    assert HOSTILE not in page.source


def test_where_the_update_is_linear_the_attack_reaches_the_unbiased_bound() -> None:
    r"""E[MSE] = sigma^2 tr((J^T J)^-1) / N, and the variance of one is 2 sigma^4 tr((J^T J)^-2) / N^2."""
    draws, sigma, side = 60, 1e-3, 2
    pixels = 3 * side**2
    matrix = torch.randn(3 * pixels, pixels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def simulate(images: torch.Tensor, _labels: torch.Tensor) -> Update:
        return {"g": images.flatten(1) @ matrix.mT}

    batch = batch_of(1, 1, side=side).to(torch.float64)
    batch = batch.model_copy(
        update={
            "images": batch.images.clamp(0.2, 0.8).expand(draws, -1, -1, -1, -1),
            "labels": batch.labels.expand(draws, -1),
            "image_ids": batch.image_ids * draws,
            "update_ids": tuple(f"u{draw}" for draw in range(draws)),
        }
    )
    noise = torch.randn(draws, 3 * pixels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = simulate(batch.images, batch.labels)["g"]
    observation = FedSGD(small_victim(side=side).double())(batch)
    observation = observation.model_copy(update={"simulate": simulate, "update": {"g": mean + sigma * noise}})
    attack = GradientMatching(
        likelihood=Gaussian(sigma=sigma),
        search=LevenbergMarquardt(steps=10, tolerance=1e-9),
        labels=Given(),
        pixels=Pixels(start="uniform", box=False),
    )
    errors = (attack(observation).images - batch.images).square().flatten(1).mean(1)
    inverse = torch.linalg.inv(matrix.mT @ matrix)
    expected = sigma**2 * float(inverse.trace()) / pixels
    deviation = math.sqrt(2 * float((inverse @ inverse).trace()) / draws) * sigma**2 / pixels
    assert abs(float(errors.mean()) - expected) < 4 * deviation
    assert deviation < 0.1 * expected  # so that twice the bound would fail
    spectrum = exact_spectrum(Jacobian(simulate, batch.images[0], batch.labels[0]))
    assert unbiased_mse_bound(spectrum, sigma=sigma) == pytest.approx(expected)
