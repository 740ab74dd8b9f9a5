"""The order of an epoch: every sample once, in windows of shards, in memory that does not grow."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from workflows.train.order import Order, permuted
from workflows.train.plan import Plan


def epoch_of(order: Order, epoch: int = 0) -> NDArray[np.int64]:
    """All samples of an epoch, as training meets them."""
    parts: list[NDArray[np.int64]] = []
    while (place := sum(map(len, parts))) < order.num_samples:
        parts.append(order.stretch(epoch, place, order.num_samples))
    return np.concatenate(parts)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 63, 64, 65, 1000])
def test_a_permutation_meets_every_number_once(size: int) -> None:
    found = [permuted(index, size, "key") for index in range(size)]
    assert sorted(found) == list(range(size))
    if size > 50:
        assert found != [permuted(index, size, "other") for index in range(size)]
        assert abs(np.corrcoef(found, range(size))[0, 1]) < 0.35
        assert np.corrcoef(range(size), range(size))[0, 1] > 0.35, "negative control"


@pytest.mark.parametrize(
    ("samples", "shard", "window"),
    [(37, 100, 10), (37, 5, 100), (37, 5, 10), (40, 5, 10), (41, 5, 1), (1, 5, 5), (1000, 7, 50), (1000, 7, 57)],
)
def test_every_epoch_visits_every_sample_once(samples: int, shard: int, window: int) -> None:
    order = Order(3, samples, shard, window)
    first, second = epoch_of(order), epoch_of(order, 1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(samples))
    if samples > 1:
        assert first.tolist() != second.tolist()
    rows, place = [], 0
    for number in range(order.num_windows):
        shards = order.shards(0, number)
        assert len(shards) <= max(1, round(window / shard))
        count = sum(min(shard, samples - one * shard) for one in shards)
        part = first[place : place + count]
        assert set((part // shard).tolist()) == set(shards), "a window holds the rows of its shards"
        assert [order.window_at(row) for row in range(place, place + count)] == [number] * count
        rows.append(count)
        place += count
    assert place == samples
    whole = rows[:-1] or rows
    assert max(whole) - min(whole) <= shard, "windows are equally large"


def test_shards_and_rows_are_mixed_anew_in_every_epoch_and_window() -> None:
    order = Order(3, 24_000, 100, 2_000)
    assert order.num_windows == 12
    assert order.shards(0, 0) != order.shards(1, 0)
    assert set(order.shards(0, 0)) != set(order.shards(1, 0))
    mixed = []
    for window in range(12):
        shards, rows = order.shards(0, window), order.stretch(0, 2_000 * window, 2_000)
        mixed.append([100 * shards.index(row // 100) + row % 100 for row in rows.tolist()])
    assert all(sorted(places) == list(range(2_000)) for places in mixed)
    assert all(mixed[0] != other for other in mixed[1:]), "each window is mixed in another way"


def test_the_permutation_of_shards_is_mixed_in_both_halves_of_its_bits() -> None:
    """With one round of the network, the higher half of an index decides nothing but one exclusive or."""
    found = np.array([permuted(index, 1 << 12, "key") for index in range(1 << 12)])
    steps = np.abs(np.diff(found))
    assert np.median(steps) > 0.25 * len(found), "neighbours end far apart"
    assert np.unique(np.diff(found)).size > 0.5 * len(found), "and not by the same few distances"


def test_one_window_is_the_permutation_of_all_samples() -> None:
    """What training on sets that fit into one window always did."""
    wanted = np.random.default_rng([3, 17, 2]).permutation(40)
    assert np.array_equal(epoch_of(Order(3, 40, 100, 1000), 2), wanted)
    assert np.array_equal(epoch_of(Order(3, 40, 8, 1000), 2), wanted)


def test_a_plan_resumes_in_the_middle_of_a_window() -> None:
    plan = Plan(5, 1000, 30, shard_rows=7, shuffle_rows=60)
    whole = plan.rows(0, 3000).samples
    for seen in (0, 30, 990, 1020, 2010):
        assert plan.batch(seen).samples.tolist() == whole[seen : seen + 30].tolist()


def test_planning_does_not_grow_with_the_samples() -> None:
    def peak(samples: int) -> int:
        tracemalloc.start()
        plan = Plan(1, samples, 256, shard_rows=1024)
        for seen in (0, samples // 2, samples - 100, 5 * samples + 17):
            assert len(plan.batch(seen).samples) == 256
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small = peak(100_000)
    assert peak(10_000_000_000) < 1.5 * small
    assert 1.5 * small < 8 * 10_000_000, "negative control: a permutation of a thousandth of them would be more"


def test_mixing_is_that_of_a_full_shuffle_where_shards_are_mixed() -> None:
    """Classes in a batch of 64, of ten: rows sorted by class, 16 windows of 16 shards, against a full shuffle."""
    classes = np.arange(65_536) // 6554

    def in_a_batch(rows: NDArray[np.int64]) -> float:
        return float(np.mean([len(set(batch)) for batch in classes[rows].reshape(-1, 64).tolist()]))

    shuffled = in_a_batch(np.random.default_rng(0).permutation(65_536))
    windowed = in_a_batch(epoch_of(Order(0, 65_536, 256, 4096)))
    unmixed = in_a_batch(np.arange(65_536))
    assert shuffled > 9.9
    assert windowed > 0.75 * shuffled
    assert unmixed < 1.2
