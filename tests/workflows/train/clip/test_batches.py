"""Groups without two of a meaning, drawn alike from any number of rows seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workflows.train.conftest import CLIP
from workflows.config.schema import TrainConfig
from workflows.data.dataset import DataInfo, Dataset, Split, write_split
from workflows.errors import InvalidConfig
from workflows.towers.clip_model import build_tokenizer
from workflows.train.batches import Share
from workflows.train.clip.batches import DistinctPlan, meanings_of, vocabulary_of
from workflows.train.clip.objective import ClipObjective

CPU = torch.device("cpu")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=100), st.integers(1, 64), st.integers(0, 9))
def test_no_group_holds_two_samples_that_mean_the_same(values: list[int], batch_size: int, seed: int) -> None:
    meanings = np.unique(values, return_inverse=True)[1].astype(np.int64)
    plan = DistinctPlan(meanings, batch_size, seed)
    size = min(batch_size, int(meanings.max()) + 1)
    for step in range(3):
        samples, wordings = plan.batch(step * plan.batch_size)
        assert samples.shape == wordings.shape == (max(1, batch_size // size), size)
        assert samples.size == plan.batch_size <= batch_size
        for group in meanings[samples]:
            assert len(set(group)) == size


def test_batches_reach_every_sample_and_every_meaning_evenly() -> None:
    meanings = np.array([0] * 2 + [1] * 30 + [2] * 8, np.int64)
    plan = DistinctPlan(meanings, 2, seed=0)
    drawn = np.concatenate([plan.batch(2 * step)[0].ravel() for step in range(600)])
    assert set(drawn) == set(range(40))
    share = np.bincount(meanings[drawn]) / len(drawn)
    assert np.abs(share - 1 / 3).max() < 0.05


def test_a_batch_depends_on_the_seed_and_on_the_rows_seen_alone() -> None:
    meanings = np.arange(50, dtype=np.int64) % 20
    whole = [DistinctPlan(meanings, 8, seed=0).batch(seen) for seen in range(0, 40, 8)]
    resumed = DistinctPlan(meanings, 8, seed=0)
    for number in (3, 1, 4):
        np.testing.assert_array_equal(resumed.batch(8 * number), whole[number])
    assert len({samples.tobytes() for samples, _ in whole}) == len(whole)
    assert (DistinctPlan(meanings, 8, seed=1).batch(0)[0] != whole[0][0]).any()


def test_samples_mean_the_same_by_their_attributes_or_else_by_their_first_caption(tmp_path: Path) -> None:
    captions = (("a", "b"), ("c",), ("a",))

    def meant(*attributes: tuple[str, ...]) -> list[int]:
        split = Split(
            np.arange(3), np.zeros((3, 1, 2, 2), np.uint8), captions, np.zeros(3, np.int64), attributes,
            np.zeros(3, np.bool_),
        )  # fmt: skip
        parts = {"train": write_split(split, tmp_path, "train")}
        return meanings_of(
            Dataset(tmp_path, DataInfo("test", (1, 2, 2), (), {}, 3, 0, "0", (), (), None, parts))
        ).tolist()

    assert meant(("red",), ("red",), ("blue",)) == [0, 0, 1]
    assert meant(("red", "x"), ("red", "y"), ("red", "x")) == [0, 1, 0]
    assert meant((), (), ()) == [0, 1, 0]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_shares_of_all_workers_are_the_batch(
    digits: Dataset, clip: ClipObjective, clip_loop: TrainConfig, size: int
) -> None:
    batches = clip.open(digits.folder, clip_loop, CPU)
    whole = batches.read(60, 0, Share())
    assert len(whole) == len(whole.groups) == clip_loop.batch_size == 30
    parts = [batches.read(60, 0, Share(rank, size)) for rank in range(size)]
    for part in parts:
        assert torch.equal(part.sample_ids, whole.sample_ids[part.share.rows])
        assert torch.equal(part.x, whole.x[part.share.rows])
        assert torch.equal(part.ids, whole.ids[part.share.rows])
        assert torch.equal(part.groups, whole.groups)
    assert sum(map(len, parts)) == len(whole)


def test_rows_are_the_pictures_and_one_of_the_captions_of_their_samples(
    digits: Dataset, clip: ClipObjective, clip_loop: TrainConfig
) -> None:
    batch, split = clip.open(digits.folder, clip_loop, CPU).read(0, 0, Share()), digits.read("train")
    rows = {int(number): row for row, number in enumerate(split.sample_ids)}
    tokenizer, worded = build_tokenizer(CLIP), set()
    for number, x, ids in zip(batch.sample_ids.tolist(), batch.x, batch.ids, strict=True):
        row = rows[number]
        assert torch.equal(x, torch.from_numpy(split.images[row]).float() / 127.5 - 1.0)
        wordings = tokenizer(list(split.captions[row])).tolist()
        assert clip.vocabulary[ids].tolist() in wordings
        worded.add(wordings.index(clip.vocabulary[ids].tolist()))
    assert len(worded) > 1


def test_parts_hold_whole_groups(digits: Dataset, clip: ClipObjective, clip_loop: TrainConfig) -> None:
    accumulating = clip_loop.model_copy(update={"accumulate": 2})
    batches = clip.open(digits.folder, accumulating, CPU)
    assert [len(batches.read(0, part, Share())) for part in (0, 1)] == [20, 10]
    with pytest.raises(InvalidConfig, match=r"set clip\.accumulate to at most 3"):
        clip.open(digits.folder, clip_loop.model_copy(update={"accumulate": 4}), CPU)


def test_captions_are_read_without_the_pictures(digits: Dataset) -> None:
    tokenizer, split = build_tokenizer(CLIP), digits.read("train")
    texts = sorted({text for several in split.captions for text in several})
    assert vocabulary_of(digits, tokenizer).tolist() == tokenizer(texts).unique().tolist()
    meanings = meanings_of(digits)
    assert len(set(meanings.tolist())) == 10
    first: dict[int, int] = {}
    assert meanings.tolist() == [first.setdefault(int(label), len(first)) for label in split.labels]
