"""The adversarial-risk curve (rule R18)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from references import metrics as reference

from gibench.errors import ShapeError
from gibench.metrics import default_deltas, risk_curve

SIZE = 3072
errors = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(mse=errors, grid=st.lists(st.floats(0, 60), min_size=1, max_size=10).map(sorted))
def test_it_is_the_share_beyond_delta(mse: list[float], grid: list[float]) -> None:
    distances = [float(np.sqrt(SIZE * error)) for error in mse]
    curve = risk_curve(mse, image_size=SIZE, deltas=grid)
    assert curve.deltas.tolist() == grid
    assert curve.risk.tolist() == pytest.approx([reference.risk(distances, delta) for delta in grid])


@given(mse=errors, data=st.data())
def test_it_never_rises_and_ends_at_the_share_of_failures(mse: list[float], data: st.DataObject) -> None:
    failed = data.draw(st.lists(st.booleans(), min_size=len(mse), max_size=len(mse)))
    risk = risk_curve(mse, image_size=SIZE, failed=failed).risk
    assert (np.diff(risk) <= 0).all()
    assert risk[-1] == pytest.approx(np.mean(failed))
    assert (risk >= risk_curve(mse, image_size=SIZE).risk).all()


def test_known_distances() -> None:
    curve = risk_curve(
        [0.0, 0.25, np.nan, 0.0], image_size=4, failed=[False, False, False, True], deltas=[0, 0.5, 1, 9]
    )
    assert curve.risk.tolist() == [0.75, 0.75, 0.5, 0.5]  # 0.25 is at distance 1, which is not above 1


def test_the_default_grid_reads_as_decibel() -> None:
    grid = default_deltas(SIZE)
    assert grid.shape == (61,)
    assert (np.diff(grid) > 0).all()
    assert grid[-1] == pytest.approx(np.sqrt(SIZE))
    psnr = np.array([5.5, 20.5, 40.5])
    risk = risk_curve(10 ** (-psnr / 10), image_size=SIZE).risk
    assert risk[60 - 41] == pytest.approx(3 / 3)
    assert risk[60 - 40] == pytest.approx(2 / 3)
    assert risk[60 - 20] == pytest.approx(1 / 3)
    assert risk[60 - 5] == 0


@pytest.mark.parametrize(("mse", "failed"), [([], None), ([[0.1]], None), ([0.1], [True, False])])
def test_other_shapes_are_refused(mse: list[float], failed: list[bool] | None) -> None:
    with pytest.raises(ShapeError):
        risk_curve(mse, image_size=SIZE, failed=failed)
