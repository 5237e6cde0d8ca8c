"""Adam and its schedule."""

import pytest

from gibench.errors import ConfigurationError
from gibench.search import Adam


@pytest.mark.parametrize(("steps", "milestones"), [(4800, (1799, 2999, 4203)), (24000, (8998, 14999, 21015))])
def test_step_schedule_drops_where_the_published_code_does(steps: int, milestones: tuple[int, ...]) -> None:
    """T // 2.667, T // 1.6, T // 1.142 in floating point, where 24000 // 1.6 is 14999."""
    search = Adam(steps=steps)
    for drops, milestone in enumerate(milestones):
        assert search.factor(milestone - 1) == pytest.approx(0.1**drops)
        assert search.factor(milestone) == pytest.approx(0.1 ** (drops + 1))


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigurationError):
        Adam(steps=0)
    with pytest.raises(ConfigurationError):
        Adam(steps=1, rate=-1.0)
