"""Captions in order of first use: against a dictionary that counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from workflows.data.dataset import SPLITS, DataInfo, Dataset, Split, SplitName, write_split
from workflows.embed import caption_index
from workflows.embed.caption_index import CaptionIndex, texts_of
from workflows.embed.manifest import caption_id, normalise

CANDIDATES = ("b  b", "never used", "b b")


def write(folder: Path, *, train: int, held_out: int) -> Dataset:
    """Samples with one to three captions, of which some return and some are alike when normalised."""
    rng, parts, counts = np.random.default_rng(5), {}, {"train": train, "held_out": held_out}
    for split in SPLITS:
        count = counts[split]
        captions = tuple(
            tuple(f"{'b ' * int(rng.integers(1, 3))} b{'' if kind else int(rng.integers(40))}" for kind in kinds)
            for kinds in (rng.integers(0, 2, int(rng.integers(1, 4))) for _ in range(count))
        )
        samples = Split(
            np.arange(count), np.zeros((count, 1, 1, 1), np.uint8), captions, np.full(count, -1), ((),) * count,
            np.zeros(count, np.bool_),
        )  # fmt: skip
        parts[split] = write_split(samples, folder, split)
    return Dataset(folder, DataInfo("test", (1, 1, 1), (), {}, train, held_out, "0", CANDIDATES, (), None, parts))


def uses_of(dataset: Dataset, split: SplitName) -> list[list[str]]:
    return [[normalise(text) for text in texts] for texts in dataset.read(split).captions]


@pytest.mark.parametrize(("train", "held_out"), [(50, 20), (1, 1)])
def test_positions_follow_first_use(tmp_path: Path, train: int, held_out: int) -> None:
    dataset = write(tmp_path, train=train, held_out=held_out)
    index, rows = CaptionIndex.read(dataset, "tower"), uses_of(dataset, "train") + uses_of(dataset, "held_out")
    order: dict[str, int] = {}
    for text in [normalise(text) for text in CANDIDATES] + [text for texts in rows for text in texts]:
        order.setdefault(text, len(order))
    assert index.candidates == ("b b", "never used")
    assert index.ids.to_pylist() == [caption_id("tower", text) for text in order]
    for row, texts in enumerate(rows):
        assert index.uses(row, row + 1).tolist() == [order[text] for text in texts]


@pytest.mark.parametrize("rows_at_once", [3, 1 << 14])
@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_any_stretch_of_positions_finds_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, rows_at_once: int
) -> None:
    monkeypatch.setattr(caption_index, "_ROWS_AT_ONCE", rows_at_once)
    dataset = write(tmp_path, train=50, held_out=20)
    index = CaptionIndex.read(dataset, "tower")
    found = [
        text for start in range(0, len(index), size) for text in texts_of(dataset, index.item(start, start + size))
    ]
    assert [caption_id("tower", text) for text in found] == index.ids.to_pylist()
    keys = [index.key(start, start + size) for start in range(0, len(index), size)]
    assert len(set(keys)) == len(keys)
