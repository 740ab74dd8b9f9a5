from __future__ import annotations

from dataclasses import replace

import pytest

from workflows.config.schema import EmbedConfig
from workflows.data.dataset import SPLITS, Dataset
from workflows.embed.caption_index import texts_of
from workflows.embed.plan import EmbedPlan, plan_shards
from workflows.runtime.artifact import Artifact
from workflows.storage.shards import Shard
from workflows.towers.identity import ClipIdentity


@pytest.fixture
def dataset(inputs: dict[str, Artifact]) -> Dataset:
    return Dataset.open(inputs["data"].folder)


@pytest.fixture
def identity(inputs: dict[str, Artifact]) -> ClipIdentity:
    return ClipIdentity.load(inputs["clip"].folder)


def make(dataset: Dataset, identity: ClipIdentity, **settings: object) -> EmbedPlan:
    return plan_shards(dataset, identity, EmbedConfig.model_validate(settings))


def test_every_caption_and_every_sample_is_in_one_shard(dataset: Dataset, identity: ClipIdentity) -> None:
    plan = make(dataset, identity, rows_per_shard=100)
    texts = {text for split in SPLITS for row in dataset.read(split).captions for text in row}
    found = [text for item in plan.captions for text in texts_of(dataset, item)]
    assert sorted(found) == sorted(texts)
    assert found[:10] == list(dataset.info.candidate_captions), "candidate captions come first"
    assert plan.rows == {"train": 359, "held_out": 1438, "captions": len(texts)}
    for split in SPLITS:
        ranges = [(item["start"], item["stop"]) for item in plan.images if item["split"] == split]
        assert [row for start, stop in ranges for row in range(start, stop)] == list(range(plan.rows[split]))
        assert all(stop - start <= 100 for start, stop in ranges)


def test_candidate_captions_are_cached_even_if_no_sample_has_them(dataset: Dataset, identity: ClipIdentity) -> None:
    more = replace(dataset, info=replace(dataset.info, candidate_captions=("a caption of its own",)))
    assert texts_of(more, make(more, identity).captions[0])[0] == "a caption of its own"
    assert "a caption of its own" not in texts_of(dataset, make(dataset, identity).captions[0])


def test_a_plan_does_not_depend_on_who_carries_it_out(dataset: Dataset, identity: ClipIdentity) -> None:
    assert make(dataset, identity, workers=1, batch_size=7) == make(dataset, identity, workers=5, batch_size=64)
    assert make(dataset, identity).key != make(dataset, identity, dtype="float16").key
    assert make(dataset, identity).key == make(dataset, identity, rows_per_shard=9).key


def test_shards_beyond_a_million_keep_their_order(dataset: Dataset, identity: ClipIdentity) -> None:
    numbers = [0, 7, 999_999, 1_000_000, 1_000_001, 10_000_000]
    shards = [Shard(f"{split}/images/shard-{i:06d}-{'0' * 64}.arrow", 1, "0" * 64) for split in SPLITS for i in numbers]
    manifest = make(dataset, identity).manifest(dataset, identity, "float32", reversed(shards))
    for split in SPLITS:
        assert manifest.shards(f"{split}/images") == tuple(one for one in shards if one.path.startswith(split))


def test_shards_of_large_rows_hold_fewer(dataset: Dataset, identity: ClipIdentity) -> None:
    large = replace(dataset, info=replace(dataset.info, shape=(3, 1024, 1024)))
    assert {item["stop"] - item["start"] for item in make(large, identity).images[:-1]} >= {21}
    wide = replace(identity, context_length=77, width=100_000)
    assert make(dataset, wide).shard_rows["captions"] == 2
    assert max(len(texts_of(dataset, item)) for item in make(dataset, wide).captions) == 2
