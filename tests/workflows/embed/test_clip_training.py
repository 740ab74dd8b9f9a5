from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workflows.embed.conftest import TINY, build_tiny
from workflows.artifact import Artifact
from workflows.config import RunConfig
from workflows.data.dataset import Dataset, Split
from workflows.data.digits import digits
from workflows.embed.clip import Clip, ImageTower, TextTower
from workflows.embed.clip_files import save_clip
from workflows.embed.clip_training import build_model, distinct_batches, fit, meanings_of, model_config
from workflows.embed.identity import ClipIdentity
from workflows.embed.zero_shot import zero_shot
from workflows.errors import InvalidClip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=100), st.integers(1, 64), st.integers(0, 9))
def test_no_group_holds_two_samples_that_mean_the_same(values: list[int], batch_size: int, seed: int) -> None:
    meanings = np.unique(values, return_inverse=True)[1].astype(np.int64)
    size = min(batch_size, int(meanings.max()) + 1)
    for rows in distinct_batches(meanings, batch_size, steps=3, seed=seed):
        assert rows.shape == (max(1, batch_size // size), size)
        assert rows.size <= batch_size
        for group in meanings[rows]:
            assert len(set(group)) == size


def test_batches_reach_every_sample_and_every_meaning_evenly() -> None:
    meanings = np.array([0] * 2 + [1] * 30 + [2] * 8, np.int64)
    drawn = np.concatenate([rows.ravel() for rows in distinct_batches(meanings, 2, steps=600, seed=0)])
    assert set(drawn) == set(range(40))
    share = np.bincount(meanings[drawn]) / len(drawn)
    assert np.abs(share - 1 / 3).max() < 0.05


def test_the_seed_decides_the_batches() -> None:
    meanings = np.arange(50, dtype=np.int64) % 20
    first, again, other = (np.stack(list(distinct_batches(meanings, 8, 5, seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_meaning_is_the_attributes_or_else_the_caption() -> None:
    def split(attributes: tuple[tuple[str, ...], ...]) -> Split:
        captions = (("a", "x"), ("b",), ("a",))
        images, numbers = np.zeros((3, 1, 2, 2), np.uint8), np.arange(3, dtype=np.int64)
        return Split(numbers, images, captions, numbers, attributes, np.zeros(3, np.bool_))

    assert meanings_of(split((("red",), ("red",), ("blue",)))).tolist() == [0, 0, 1]
    assert meanings_of(split(((), (), ()))).tolist() == [0, 1, 0]


@pytest.mark.parametrize(("vision_width", "text_width"), [(96, 64), (100, 56), (7, 11)])
def test_any_width_makes_a_model(vision_width: int, text_width: int) -> None:
    sizes = {"vision_width": vision_width, "text_width": text_width}
    model, tokenizer = build_model(TINY.model_copy(update=sizes), image_size=8)
    assert model(torch.zeros(1, 3, 8, 8), tokenizer(["a"]))["text_features"].shape == (1, 8)


def test_patches_must_fill_the_picture() -> None:
    with pytest.raises(InvalidClip, match="patch_size 3 does not divide the 8 pixels"):
        build_model(TINY.model_copy(update={"patch_size": 3}), image_size=8)


def test_only_tokens_that_occur_move() -> None:
    train, _ = digits(held_out=0.9, seed=0)
    model, tokenizer = build_tiny()
    before = model.token_embedding.weight.detach().clone()
    used = tokenizer([text for texts in train.captions for text in texts]).unique()
    losses = list(fit(model, tokenizer, train, TINY.model_copy(update={"steps": 3}), torch.device("cpu")))
    assert len(losses) == 3
    assert model.token_embedding.weight.shape == before.shape
    moved = (model.token_embedding.weight != before).any(1)
    assert set(moved.nonzero()[:, 0].tolist()) <= set(used.tolist())
    assert moved.sum() > 10


def test_the_loss_is_that_of_the_whole_model() -> None:
    """The first loss, computed with a small vocabulary, equals ClipLoss through the untouched model."""
    train, _ = digits(held_out=0.9, seed=0)
    one = Split(*(value[:10] for value in vars(train.rows(np.unique(train.labels, return_index=True)[1])).values()))
    single = Split(
        one.sample_ids, one.images, tuple(texts[:1] for texts in one.captions), *list(vars(one).values())[3:]
    )
    model, tokenizer = build_tiny()
    rows = next(distinct_batches(meanings_of(single), 10, 1, TINY.seed))[0]
    images = torch.from_numpy(single.images[rows]).float().expand(-1, 3, -1, -1) / 127.5 - 1
    out = model(images, tokenizer([single.captions[row][0] for row in rows]))
    expected = open_clip.ClipLoss()(out["image_features"], out["text_features"], out["logit_scale"])
    config = TINY.model_copy(update={"steps": 1, "batch_size": 10})
    assert next(fit(model, tokenizer, single, config, torch.device("cpu"))) == pytest.approx(expected.item(), rel=1e-5)


def test_a_short_training_names_held_out_digits(
    config: RunConfig, inputs: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> None:
    dataset = Dataset.open(inputs["data"].folder)
    size = {"embed_dim": 32, "text_width": 32, "text_layers": 1, "vision_width": 48, "vision_layers": 2}
    short = config.clip.model_copy(update=size | {"steps": 150, "batch_size": 40})
    model, tokenizer = build_model(short, image_size=8)

    def accuracy() -> float:
        folder = tmp_path_factory.mktemp("clip")
        save_clip(folder, model, tokenizer, name="x", source="train", model_cfg=model_config(short, 8))
        clip = Clip(TextTower(model, tokenizer), ImageTower(model), ClipIdentity.load(folder), 1.0)
        return zero_shot(clip, dataset, torch.device("cpu"))["zero_shot"]

    model.eval()
    assert accuracy() < 0.3, "chance is 0.1"
    losses = list(fit(model, tokenizer, dataset.read("train"), short, torch.device("cpu")))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert accuracy() > 0.7
