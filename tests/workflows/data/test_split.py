from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.data.split import stratified_held_out


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.floats(0, 1), st.integers(0, 99))
def test_every_group_gives_the_same_share(groups: list[int], fraction: float, seed: int) -> None:
    members = np.array(groups, np.int64)
    held_out = stratified_held_out(members, fraction, np.random.default_rng(seed))
    for group in set(groups):
        assert held_out[members == group].sum() == round(fraction * groups.count(group))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_decides(seed: int) -> None:
    groups = np.zeros(1000, np.int64)
    first = stratified_held_out(groups, 0.5, np.random.default_rng(seed))
    np.testing.assert_array_equal(first, stratified_held_out(groups, 0.5, np.random.default_rng(seed)))
    assert (first != stratified_held_out(groups, 0.5, np.random.default_rng(seed + 1))).mean() > 0.4
