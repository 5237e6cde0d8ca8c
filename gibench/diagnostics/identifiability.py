"""What an update discards, measured before any attack: null directions, condition, least errors (one record each).

The diagnostic sees the private images: it is for whoever owns them, and no attack has what it says. It is local, a
statement about small changes at these images and weights.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from gibench.clients import Client
from gibench.defenses import DPSGD, GaussianNoise
from gibench.diagnostics.cramer_rao import (
    PRIOR_VARIANCE,
    bayesian_mse_bound,
    bayesian_psnr_bound,
    effective_directions,
    information,
    unbiased_mse_bound,
    unbiased_psnr_bound,
)
from gibench.diagnostics.jacobian import Jacobian
from gibench.diagnostics.spectrum import AnySpectrum, EstimatedSpectrum, Method, Spectrum, spectrum_of
from gibench.errors import RecordError, RefusalError
from gibench.likelihoods import Gaussian
from gibench.storage import write_atomically
from gibench.types import Batch, Simulate

FLOORS = (1e-1, 1e-2, 1e-3, 1e-4)
"""Standard deviations of noise that is assumed where the client adds none, in units of the update's RMS entry."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NoiseFloor(_Frozen):
    """What is left under Gaussian noise on the update.

    relative: standard deviation in units of the update's RMS entry. sigma: in the update's own.
    directions: how many stand above the noise. bits: what the update says of the images.
    psnr: of the least expected MSE with a prior, in dB; psnr_unbiased: without, over the identifiable directions; None
        of estimates. A mean of PSNRs may exceed them, because -log is convex.
    mse, mse_unbiased: the same as mean squared errors, without a ceiling; None where they were not recorded yet.
    *_error: standard errors; 0 of exact spectra.
    """

    relative: float
    sigma: float
    directions: float
    directions_error: float
    bits: float
    bits_error: float
    psnr: float
    psnr_error: float
    psnr_unbiased: float | None
    mse: float | None = None
    mse_unbiased: float | None = None


class Identifiability(_Frozen):
    """The diagnosis of one update: one line of `identifiability.jsonl`.

    method: "exact" or "estimated". unknowns: N pixels of all images. observations: P entries of the update.
    null_directions, condition, gap, tolerance: see `Spectrum`; None of estimates. largest, smallest: singular values;
        of estimates, bounds (see `EstimatedSpectrum`). noise_free_psnr: of the least expected MSE, with a
        prior and no noise.
    rms: of the update's entries. prior_variance: of each pixel. floors: see `NoiseFloor`; one where the defense adds
        Gaussian noise (`own_noise`), else those that are assumed.
    remark: of what the numbers are, where something of the client's protocol is not in them.
    """

    scenario: str
    update_id: str
    labels: tuple[int, ...]
    method: Literal["exact", "estimated"]
    unknowns: int
    observations: int
    null_directions: int | None
    condition: float | None
    gap: float | None
    tolerance: float | None
    largest: float
    smallest: float
    noise_free_psnr: float | None
    rms: float
    prior_variance: float
    own_noise: bool
    floors: tuple[NoiseFloor, ...]
    remark: str | None
    seconds: float

    @property
    def null_share(self) -> float | None:
        """Share of the directions that leave no trace."""
        return None if self.null_directions is None else self.null_directions / self.unknowns


class Released(NamedTuple):
    """How an update comes about: its mean as a function of the images, the noise on it, and what is left out.

    simulate: images (1, B, C, H, W), labels (1, B) -> the mean of what is sent. sigma: of Gaussian noise, or None.
    """

    simulate: Simulate
    sigma: float | None
    remark: str | None


def in_double(client: Client) -> Client:
    """Return a copy of the client that computes in float64: float32 hides small singular values."""
    return deepcopy(client).double()


def released(client: Client, batch: Batch) -> Released:
    """Say how the client's update depends on the images; what is not Gaussian is left out, and named.

    Args:
        client: with whatever defense.
        batch: one update, in the type of the client's victim.
    """
    shared = client.threat_model.batch_norm == "shared"  # statistics that are sent beside the update say more of images
    left_out = "without the shared BatchNorm statistics" if shared else None
    if client.defense is None:
        return Released(client.simulate, None, f"of the update {left_out}" if left_out else None)
    if not isinstance(client.defense, GaussianNoise | DPSGD):
        before = f"of the update before {client.defense}"
        return Released(client.simulate, None, f"{before}, {left_out}" if left_out else before)
    # As an attacker sees it who knows all of the client: what comes back says how the defense changes the mean.
    known = {"simulate": client.simulate, "batch_size": batch.images.shape[1]}
    distance = Gaussian()
    hypothesis = client.defense.assume(client(batch).model_copy(update=known), distance)
    noise = hypothesis.likelihood
    sigma = noise.sigma if isinstance(noise, Gaussian) and noise is not distance else None
    return Released(hypothesis.observation.simulate, sigma, f"of the update {left_out}" if left_out else None)


def identifiability(
    client: Client,
    batch: Batch,
    *,
    scenario: str,
    method: Method = "auto",
    floors: Sequence[float] = FLOORS,
    prior_variance: float = PRIOR_VARIANCE,
    spectrum: Callable[[Jacobian], Spectrum | EstimatedSpectrum] | None = None,
) -> Identifiability:
    """Diagnose one update.

    Args:
        client: from `in_double`.
        batch: one update; its images are converted.
        scenario: what the record is filed under.
        method: "exact", "estimated", or "auto", by size.
        floors: see `FLOORS`.
        prior_variance: tau^2 of each pixel.
        spectrum: where the singular values come from, for who has them; None computes them by `method`.

    Raises:
        ConfigurationError, ShapeError, NonFiniteError, RefusalError: see `jacobian_spectrum`.
    """
    start = time.perf_counter()
    batch = batch.to(client.victim.mean.dtype)
    way = released(client, batch)
    jacobian = Jacobian(way.simulate, batch.images[0], batch.labels[0])
    rms = float(jacobian.update.square().mean().sqrt())
    if rms == 0:
        raise RefusalError("the update is zero everywhere and says nothing of its images; check the victim's weights.")
    found = spectrum(jacobian) if spectrum else spectrum_of(jacobian, method=method)
    noises = [(relative, relative * rms) for relative in floors]
    if way.sigma is not None:
        noises = [(way.sigma / rms, way.sigma)]
    return Identifiability(
        scenario=scenario,
        update_id=batch.update_ids[0],
        labels=tuple(batch.labels[0].tolist()),
        unknowns=found.unknowns,
        observations=found.observations,
        rms=rms,
        prior_variance=prior_variance,
        own_noise=way.sigma is not None,
        floors=tuple(_floor(found, relative, sigma, prior_variance) for relative, sigma in noises),
        remark=way.remark,
        **_of_exact(found, prior_variance) if isinstance(found, Spectrum) else _of_estimated(found),
        seconds=time.perf_counter() - start,
    )


def _of_exact(spectrum: Spectrum, prior_variance: float) -> dict[str, Any]:
    return {
        "method": "exact",
        "null_directions": spectrum.null_directions,
        "condition": spectrum.condition if spectrum.rank else None,
        "gap": spectrum.gap,
        "tolerance": spectrum.tolerance,
        "largest": float(spectrum.values[0]),
        "smallest": float(spectrum.values[-1]),
        "noise_free_psnr": bayesian_psnr_bound(spectrum, sigma=0.0, prior_variance=prior_variance).value,
    }


def _of_estimated(spectrum: EstimatedSpectrum) -> dict[str, Any]:
    unknown = dict.fromkeys(("null_directions", "condition", "gap", "tolerance", "noise_free_psnr"))
    return {"method": "estimated", **unknown, "largest": spectrum.largest, "smallest": spectrum.smallest}


def _floor(spectrum: AnySpectrum, relative: float, sigma: float, prior_variance: float) -> NoiseFloor:
    directions, bits, psnr = (
        measure(spectrum, sigma=sigma, prior_variance=prior_variance)
        for measure in (effective_directions, information, bayesian_psnr_bound)
    )
    return NoiseFloor(
        relative=relative,
        sigma=sigma,
        directions=directions.value,
        directions_error=directions.error,
        bits=bits.value,
        bits_error=bits.error,
        psnr=psnr.value,
        psnr_error=psnr.error,
        psnr_unbiased=unbiased_psnr_bound(spectrum, sigma=sigma) if isinstance(spectrum, Spectrum) else None,
        mse=bayesian_mse_bound(spectrum, sigma=sigma, prior_variance=prior_variance).value,
        mse_unbiased=unbiased_mse_bound(spectrum, sigma=sigma) if isinstance(spectrum, Spectrum) else None,
    )


def read_identifiability(path: Path) -> list[Identifiability]:
    """Read `identifiability.jsonl`; a missing file holds none.

    Raises:
        RecordError: naming the line that is no diagnosis.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.append(Identifiability.model_validate_json(line))
        except ValidationError as error:
            raise RecordError(
                f"{path}, line {number} is no diagnosis ({error.errors()[0]['msg']}); repair or delete that line."
            ) from error
    return found


def write_identifiability(records: Sequence[Identifiability], path: Path) -> None:
    """Write all records, one per line; the file holds all of them or what it held before."""
    write_atomically("".join(record.model_dump_json() + "\n" for record in records).encode(), path)
