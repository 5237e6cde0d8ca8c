"""The panel of rule R14: what is committed, and what it says of a precision."""

from collections.abc import Iterator

import pytest

from gibench.precision import TOLERANCE, Entry, Source, judge, panel, parity

SOURCE = Source(
    command="gibench run", commit=None, torch="2.15.0", machine={}, device="cpu", backend="stacked", psnr=16.0
)


def entry(low: float, high: float) -> Entry:
    return Entry(
        precision="bf16-mixed", device="cpu", architecture="lenet", attack="ig", images=32, updates=32,
        difference=(low + high) / 2, low=low, high=high, tolerance=TOLERANCE, verdict=judge(low, high),
        reference=SOURCE, other=SOURCE,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """The panel is read once for each process."""
    panel.cache_clear()
    yield
    panel.cache_clear()


def test_the_committed_panel_is_what_its_intervals_say() -> None:
    entries = panel()
    assert len({found.key for found in entries}) == len(entries)
    for found in entries:
        assert found.tolerance == TOLERANCE
        assert found.verdict == judge(found.low, found.high), found.key
        assert found.low <= found.difference <= found.high
        assert found.difference == pytest.approx(found.other.psnr - found.reference.psnr, abs=1e-6)
        assert found.precision not in ("32-true", "64-true")
        assert found.images >= found.updates >= 2
        assert all("gibench run " in source.command for source in (found.reference, found.other))
        assert parity(found.precision, device=found.device, architecture=found.architecture) == found.verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.5, 0.5, "within"), (-0.1, 0.2, "within"), (-0.51, 0.1, "outside"), (-0.1, 0.51, "outside"), (1, 2, "outside")],
)
def test_the_whole_interval_decides(low: float, high: float, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge(low, high) == verdict
    monkeypatch.setattr("gibench.precision.panel", lambda: (entry(low, high),))
    assert parity("bf16-mixed", device="cpu", architecture="lenet") == verdict
    assert parity("bf16-mixed", device="cuda", architecture="lenet") == "untested"
    assert parity("bf16-mixed", device="cpu", architecture="mlp") == "untested"
    assert parity("tf32", device="cpu", architecture="lenet") == "untested"


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_what_is_at_least_single_precision_is_the_reference(precision: str) -> None:
    assert parity(precision, device="cuda", architecture="anything") == "reference"
