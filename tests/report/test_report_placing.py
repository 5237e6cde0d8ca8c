"""Names in drawings: near what they name, never on each other, inside the frame."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gibench.report.placing import Box, Obstacle, along, around, place, width_of

FRAME = Box(40, 20, 520, 320)
MARGIN = Box(368, 20, 520, 320)


def test_alone_a_name_stands_right_of_its_point() -> None:
    [spot] = place([around(100, (90, 100, 110), "ig", MARGIN)], [], FRAME)
    assert (spot.x, spot.y) == (110, 104)


def test_a_name_avoids_what_is_drawn() -> None:
    wall = Obstacle(Box(105, 20, 360, 320), 40)
    [spot] = place([around(100, (90, 100, 110), "ig", MARGIN)], [wall], FRAME)
    assert spot.x + width_of("ig") == pytest.approx(90)
    [spot] = place([around(42, (90, 100, 110), "ig", MARGIN)], [Obstacle(Box(50, 20, 360, 320), 40)], FRAME)
    assert spot.x == MARGIN.left  # nothing is free beside it, and left of it is outside


def test_a_level_is_named_at_its_right_end_or_where_there_is_room() -> None:
    [spot] = place([along(50, 350, 200, "floor")], [], FRAME)
    assert (spot.x + spot.width, spot.y) == (350, 195)
    crowd = Obstacle(Box(200, 180, 350, 220), 40)
    [spot] = place([along(50, 350, 200, "floor")], [crowd], FRAME)
    assert not spot.box.meets(crowd.box)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(50, 350), st.floats(40, 300)), min_size=2, max_size=9))
def test_names_never_lie_on_each_other_nor_outside(ends: list[tuple[float, float]]) -> None:
    names = [around(x, (y - 12, y, y + 12), "a long name of 20 c.", MARGIN) for x, y in ends]
    crowd = [Obstacle(Box(x - 5, y - 12, x + 5, y + 12), 40) for x, y in ends]
    spots = place(names, crowd, FRAME)
    assert not [pair for pair in combinations(spots, 2) if pair[0].box.meets(pair[1].box)]
    assert all(spot.box.left >= 40 and spot.box.right <= 520.001 for spot in spots)
    assert all(spot.box.top >= 20 and spot.box.bottom <= 320 for spot in spots)
