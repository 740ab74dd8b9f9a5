"""Generated pictures show what their captions say, as read back from the pixels."""

from __future__ import annotations

import numpy as np
import pytest

from workflows.data.builtin.shapes import ATTRIBUTES, COLORS, COMBINATIONS, POSITIONS, shapes
from workflows.data.dataset import Split
from workflows.errors import InvalidData

NUM_SAMPLES = 1200


@pytest.fixture(scope="module")
def built() -> tuple[Split, Split, tuple[int, ...]]:
    return shapes(NUM_SAMPLES, held_out=0.2, unseen=0.1, seed=0)


def both(built: tuple[Split, Split, tuple[int, ...]]) -> list[tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]]:
    return [row for split in built[:2] for row in zip(split.images, split.attributes, split.captions, strict=True)]


def test_there_are_240_combinations(built: tuple[Split, Split, tuple[int, ...]]) -> None:
    assert [len(values) for values in ATTRIBUTES.values()] == [4, 6, 2, 5]
    assert len(COMBINATIONS) == len({tuple(values.values()) for values in COMBINATIONS}) == 240
    assert len(built[0]) + len(built[1]) == NUM_SAMPLES


def test_a_tenth_is_never_trained_on(built: tuple[Split, Split, tuple[int, ...]]) -> None:
    train, held_out, never = built
    unseen = {tuple(COMBINATIONS[index].values()) for index in never}
    assert len(unseen) == 24
    assert not unseen & set(train.attributes)
    assert not train.unseen.any()
    assert {values for values, flag in zip(held_out.attributes, held_out.unseen, strict=True) if flag} == unseen
    assert len(set(train.attributes)) == 216
    assert set(train.attributes) <= set(held_out.attributes)


def test_captions_name_all_four_attributes_and_no_other_value(built: tuple[Split, Split, tuple[int, ...]]) -> None:
    for _, values, captions in both(built):
        assert len(set(captions)) == len(captions) > 1
        for text in captions:
            named = [value for allowed in ATTRIBUTES.values() for value in allowed if value in text]
            assert sorted(named) == sorted(values), text


def test_pictures_show_color_size_and_position(built: tuple[Split, Split, tuple[int, ...]]) -> None:
    grid = np.arange(32) + 0.5
    for image, values, _ in both(built):
        _, color, size, position = values
        pixels = image.astype(float)
        # Shapes are bright on a background that is dark: the brightest channel tells them apart.
        inside = pixels.max(0) > 130
        middle = pixels[:, inside].mean(1)
        assert min(COLORS, key=lambda name: np.linalg.norm(middle - COLORS[name])) == color
        assert ("small" if inside.sum() < 76 else "large") == size
        place = (inside.sum(0) @ grid / inside.sum(), inside.sum(1) @ grid / inside.sum())
        assert min(POSITIONS, key=lambda name: np.hypot(*np.subtract(place, POSITIONS[name]))) == position


def test_pictures_of_one_combination_differ(built: tuple[Split, Split, tuple[int, ...]]) -> None:
    images = np.concatenate([split.images for split in built[:2]]).reshape(NUM_SAMPLES, -1)
    assert len(np.unique(images, axis=0)) == NUM_SAMPLES


def test_the_seed_decides_everything(built: tuple[Split, Split, tuple[int, ...]]) -> None:
    again, other = (shapes(NUM_SAMPLES, held_out=0.2, unseen=0.1, seed=seed) for seed in (0, 1))
    assert again[2] == built[2] != other[2]
    assert [split.digest() for split in again[:2]] == [split.digest() for split in built[:2]]


def test_labels_are_shapes(built: tuple[Split, Split, tuple[int, ...]]) -> None:
    for split in built[:2]:
        assert [ATTRIBUTES["shape"][label] for label in split.labels] == [values[0] for values in split.attributes]


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(InvalidData, match="100 pictures of 240 combinations"):
        shapes(100, held_out=0.2, unseen=0.1, seed=0)
    with pytest.raises(InvalidData, match=r"lower data\.unseen_combinations"):
        shapes(240, held_out=0.2, unseen=1.0, seed=0)
