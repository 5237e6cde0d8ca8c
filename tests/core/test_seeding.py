"""Random numbers follow from names."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gibench.seeding import derive, normal_rows, uniform_rows


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5), st.text(max_size=5))
def test_a_row_is_the_same_alone_and_in_company(seeds: list[int], purpose: str) -> None:
    for draw in (normal_rows, uniform_rows):
        together = draw((2, 3), seeds, purpose)
        for row, seed in enumerate(seeds):
            assert torch.equal(together[row], draw((2, 3), [seed], purpose)[0])


def test_seeds_are_fixed_forever_and_separate_their_parts() -> None:
    assert derive(0, "attacker", "update-0") == 8329637593159285750
    assert derive("a", "bc") != derive("ab", "c")
    assert derive(0) != derive(1)


def test_drawing_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    normal_rows((3,), [1, 2])
    assert torch.equal(before, torch.get_rng_state())
