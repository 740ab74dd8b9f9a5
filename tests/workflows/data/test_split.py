from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.data.split import RankSplit, ranks, stratified_held_out


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


def by_definition(digests: list[bytes], fraction: float, seed: int) -> list[bool]:
    """The share of distinct pictures whose hash with the seed is lowest, sorted as Python objects."""
    order = sorted(set(digests), key=lambda digest: hashlib.sha256(f"{seed}".encode() + digest).digest())
    chosen = set(order[: round(fraction * len(order))])
    return [digest in chosen for digest in digests]


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 7])
def test_distinct_pictures_with_the_lowest_ranks_are_held_out(
    fraction: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.data.split._AT_ONCE", 64)
    digests = [bytes([number % 256, number % 7] * 8) for number in range(3000)]
    found = np.sort(ranks(digests, seed))
    split = RankSplit.of(found, fraction, seed)
    wanted = by_definition(digests, fraction, seed)
    assert split.held_out(digests).tolist() == wanted
    assert split.count(found) == sum(wanted)
    assert split.held_out(digests[:5]).tolist() == wanted[:5], "whatever else there is"


def peak(work: Callable[[], object]) -> int:
    """Bytes that this process holds at most, beyond those before."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_ten_bytes_a_row_decide_about_every_sample() -> None:
    rows, step = 1 << 20, 1 << 10
    random = np.random.default_rng(0)
    parts = [random.integers(0, 1 << 63, step, np.uint64).tobytes() for _ in range(rows // step)]

    def work(choose: Callable[[np.ndarray], object]) -> None:
        joined = bytearray()
        for part in parts:
            joined += part
        found = np.frombuffer(joined, np.uint64)
        found.sort()
        choose(found)

    assert peak(lambda: work(lambda found: RankSplit.of(found, 0.5, 0))) <= 10.5 * rows
    assert peak(lambda: work(np.unique)) > 12 * rows, "what copies the ranks is noticed"
