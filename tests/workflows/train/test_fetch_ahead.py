"""Shards of the present and the next window are here before rows of them are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.workflows.storage.flaky import FlakyFileSystem, flaky_store
from tests.workflows.train.conftest import write_cache
from workflows.data.dataset import Dataset
from workflows.embed.cache import EmbeddingCache
from workflows.embed.caption_index import CaptionIndex
from workflows.embed.images import image_table
from workflows.storage.copies import CopySettings
from workflows.storage.mapped import write_mapped
from workflows.train.fetch_ahead import FetchAhead
from workflows.train.order import Order

ROWS = 20


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with flaky_store(monkeypatch):
        yield


@pytest.fixture
def remote(digits: Dataset, tmp_path: Path) -> Callable[[int], EmbeddingCache]:
    """A cache with shards of 20 training rows in a store, and copies in so many bytes."""
    whole, folder = write_cache(digits, tmp_path / "whole"), tmp_path / "store"
    samples, index = digits.read("train"), CaptionIndex.read(digits, whole.manifest.encoder_key)
    kept = [shard for shard in whole.manifest.files if shard.path.startswith("captions")]
    for shard in kept:
        (folder / shard.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / shard.path).write_bytes((whole.folder / shard.path).read_bytes())
    for number, start in enumerate(range(0, len(samples), ROWS)):
        stop = min(start + ROWS, len(samples))
        rows = samples.rows(torch.arange(start, stop).numpy())
        table = image_table(rows, index.uses(start, stop))
        kept.append(write_mapped(folder, f"train/images/shard-{number:06d}.arrow", table, f"{number}"))
    manifest = replace(
        whole.manifest,
        rows=whole.manifest.rows | {"held_out": 0},
        files=tuple(kept),
        shard_rows={"images": ROWS, "captions": 1 << 20},
        store=f"flaky://{folder}",
    )
    (tmp_path / "remote").mkdir()
    manifest.save(tmp_path / "remote")
    return lambda limit: EmbeddingCache.open(tmp_path / "remote", CopySettings(tmp_path / "copies", limit))


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize("window", [0, 2])
def test_two_windows_are_fetched_and_no_more(
    remote: Callable[[int], EmbeddingCache], tmp_path: Path, window: int
) -> None:
    cache = remote(1 << 30)
    order = Order(0, cache.num_samples("train"), ROWS, 3 * ROWS)
    assert order.num_windows == 3
    seen, following = (order.num_samples - 1, (1, 0)) if window else (0, (0, 1))
    wanted = {*order.shards(0, window), *order.shards(*following)}
    assert set(order.shards(0, window)) < wanted < set(range(order.num_shards)), "negative control"
    shards = [*(cache.reader.shards("train/images")[number] for number in wanted), cache.reader.shards("captions")[0]]
    FetchAhead(cache.reader, order, 1 << 30).at(seen)
    copies = {shard.sha256 for shard in shards}
    assert wait_for(lambda: {path.stem for path in (tmp_path / "copies").glob("*.arrow")} == copies)
    before = len(FlakyFileSystem.opened)
    cache.images("train", order.stretch(0, seen, 7))
    assert len(FlakyFileSystem.opened) == before, "rows of a fetched window ask the store for nothing"


def test_without_room_for_two_windows_the_next_one_waits(
    remote: Callable[[int], EmbeddingCache], tmp_path: Path
) -> None:
    cache = remote(1 << 30)
    order = Order(0, cache.num_samples("train"), ROWS, 3 * ROWS)
    shards = [cache.reader.shards("train/images")[number] for number in order.shards(0, 0)]
    size = sum(cache.reader.opened.open(shard).nbytes for shard in shards)
    FetchAhead(cache.reader, order, 2 * size).at(0)
    wanted = {shard.sha256 for shard in (*shards, *cache.reader.shards("captions"))}
    assert wait_for(lambda: len(list((tmp_path / "copies").glob("*.arrow"))) == len(wanted))
    time.sleep(0.3)
    assert {path.stem for path in (tmp_path / "copies").glob("*.arrow")} == wanted


def test_an_error_is_left_to_the_reader(remote: Callable[[int], EmbeddingCache], tmp_path: Path) -> None:
    cache = remote(1 << 30)
    order = Order(0, cache.num_samples("train"), ROWS, 3 * ROWS)
    FlakyFileSystem.refused = True
    FetchAhead(cache.reader, order, 1 << 30).at(0)
    assert wait_for(lambda: len(FlakyFileSystem.opened) >= 18)
    with pytest.raises(Exception, match="403 expired token"):
        cache.images("train", order.stretch(0, 0, 7))
    FlakyFileSystem.refused = False
    assert len(cache.images("train", order.stretch(0, 0, 7))) == 7
