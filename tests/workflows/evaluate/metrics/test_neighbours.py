"""Copies among drawn pictures are found, and pictures that are merely plain are not taken for copies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from workflows.data.dataset import DataInfo, Dataset, Split, SplitName, write_split
from workflows.evaluate import real
from workflows.evaluate.metrics.neighbours import draw_neighbours, find_neighbours

Images = NDArray[np.uint8]


def bars(count: int, seed: int) -> Images:
    """Gray pictures of one soft bar each, at places and with widths of their own."""
    rng = np.random.default_rng(seed)
    places, widths = rng.uniform(4, 12, (count, 1, 1)), rng.uniform(2, 4, (count, 1, 1))
    x = np.arange(16)
    tilt = rng.uniform(-0.3, 0.3, (count, 1, 1)) * (x[:, None] - 8)
    shape = 255 * np.exp(-(((x - places - tilt) / widths) ** 2)) + rng.normal(0, 12, (count, 16, 16))
    return shape.clip(0, 255).astype(np.uint8)[:, None]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Dataset]:
    def made(train: Images, held_out: Images) -> Dataset:
        parts = {}
        found: dict[SplitName, Images] = {"train": train, "held_out": held_out}
        for name, images in found.items():
            n = len(images)
            none = np.full(n, -1, np.int64)
            split = Split(np.arange(n), images, (("a bar",),) * n, none, ((),) * n, np.zeros(n, np.bool_))
            parts[name] = write_split(split, tmp_path, name)
        info = DataInfo("folder", (1, 16, 16), (), {}, len(train), len(held_out), "0" * 64, ("a bar",), (), parts=parts)
        info.save(tmp_path)
        return Dataset.open(tmp_path)

    return made


@pytest.mark.parametrize("train", [20, 300])
def test_copies_are_found_and_new_pictures_are_not(write: Callable[..., Dataset], train: int, tmp_path: Path) -> None:
    dataset = write(bars(train, 0), bars(max(2, train // 10), 1))
    known = dataset.read("train").images
    noise = np.random.default_rng(2).normal(0, 6, (100, 1, 16, 16))
    copied = (known[np.arange(100) % train] + noise).clip(0, 255).astype(np.uint8)
    found = find_neighbours(copied, dataset, 1000)
    assert found.remembers
    assert found.share_of_copies.value > 0.8
    assert found.index.tolist() == (np.arange(100) % train).tolist()
    new = find_neighbours(bars(100, 3), dataset, 1000)
    assert not new.remembers
    assert new.share_of_copies.value < 0.1
    draw_neighbours(tmp_path / "neighbours.png", found, copied, dataset)
    assert (tmp_path / "neighbours.png").stat().st_size > 1000


def test_a_plain_picture_is_no_copy(write: Callable[..., Dataset]) -> None:
    """The mean of pictures is nearer to each of them than they are to each other, and yet remembers none."""
    dataset = write(bars(300, 0), bars(100, 1))
    train = dataset.read("train").images
    near = np.argsort(((train.astype(float) - train[0]) ** 2).mean(axis=(1, 2, 3)))[:30]
    plain = train[near].astype(float).mean(axis=0).astype(np.uint8)
    found = find_neighbours(np.repeat(plain[None], 50, axis=0), dataset, 1000)
    assert np.median(found.distance) < np.median(found.distance_real)
    assert not found.remembers


def test_pages_give_what_one_look_gives_and_a_bound_is_kept(
    write: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, drawn = write(bars(200, 0), bars(30, 1)), bars(20, 5)
    whole = find_neighbours(drawn, dataset, 1000)
    monkeypatch.setattr(real, "PAGE", 16)
    paged = find_neighbours(drawn, dataset, 1000)
    assert paged.index.tolist() == whole.index.tolist()
    assert np.allclose(paged.closeness, whole.closeness, rtol=1e-3)
    assert (whole.compared, find_neighbours(drawn, dataset, 70).compared) == (200, 64)


def test_three_pictures_have_an_answer(write: Callable[..., Dataset]) -> None:
    dataset = write(bars(2, 0), bars(1, 1))
    found = find_neighbours(bars(5, 2), dataset, 1000)
    assert np.isfinite(found.distance).all()
    assert not found.remembers
    assert not find_neighbours(bars(5, 2), write(bars(1, 0), bars(1, 1)), 1000).remembers
