"""What the errors of an attack look like, over its images (see `gibench.metrics.ErrorsInPictures`)."""

import statistics
from collections.abc import Iterable, Sequence

from gibench.types import Record


def looks(records: Sequence[Record]) -> dict[str, float | None]:
    """Return the columns of a row that tell one kind of failure from another, by name; None where no record says."""
    return {
        "psnr_mixture": _mean(record.psnr_mixture for record in records),
        "mixtures": _mean(_closer(record, record.psnr_mixture) for record in records),
        "psnr_class_mean": _mean(record.psnr_class_mean for record in records),
        "class_means": _mean(_closer(record, record.psnr_class_mean) for record in records),
        "bad_pixels": _mean(record.bad_pixels for record in records),
        "tv_ratio": _median(record.tv_ratio for record in records),
        "identified": _mean(record.identified for record in records),
    }


def _closer(record: Record, psnr: float | None) -> bool | None:
    """Whether a reconstruction is closer to something else than to its own image."""
    return None if psnr is None else psnr > record.psnr


def _mean(values: Iterable[float | None]) -> float | None:
    present = [float(value) for value in values if value is not None]
    return statistics.fmean(present) if present else None


def _median(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None
