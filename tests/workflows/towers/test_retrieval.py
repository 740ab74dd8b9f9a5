"""Retrieval on held-out pictures, with towers whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workflows.data.rows import Pictures
from workflows.towers.retrieval import Retrieval, retrieval

CPU = torch.device("cpu")


class Data:
    """Held-out pictures whose first pixel is the number of their caption."""

    def __init__(self, captions: list[str], chunk: int = 7) -> None:
        self.info = SimpleNamespace(rows=Pictures((1, 1, 1)))
        self._captions, self._chunk = captions, chunk
        self.read = 0

    def chunks(self, _split: str) -> Any:
        for start in range(0, len(self._captions), self._chunk):
            texts = self._captions[start : start + self._chunk]
            self.read += len(texts)
            images = np.array([int(text) for text in texts], np.uint8).reshape(-1, 1, 1, 1)
            yield SimpleNamespace(images=images, captions=[(text, "another wording") for text in texts])


def towers(num: int, shift: dict[int, int] | None = None, *, blind: bool = False) -> Any:
    """Vectors are unit vectors of the number; a shifted picture looks like another."""

    def image(x: Tensor) -> Tensor:
        numbers = ((x + 1.0) * 127.5).round().long().flatten()
        seen = [0 if blind else (shift or {}).get(int(n), int(n)) for n in numbers]
        return torch.eye(num)[seen]

    def text(captions: list[str]) -> Any:
        return SimpleNamespace(pooled=torch.eye(num)[[0 if blind else int(caption) for caption in captions]])

    return SimpleNamespace(image=SimpleNamespace(encode=image), text=SimpleNamespace(encode=text))


def measured(captions: list[str], clip: Any) -> Retrieval:
    found = retrieval(clip, Data(captions), CPU)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_the_share_is_that_of_the_pictures_whose_caption_is_closest() -> None:
    captions = [str(number) for number in range(20)]
    assert measured(captions, towers(20)) == Retrieval(20, 1.0, 1.0)
    assert measured(captions, towers(20, {3: 4, 5: 6, 7: 8, 9: 1})).first == pytest.approx(0.8)


@pytest.mark.parametrize("num", [2, 3, 40])
def test_towers_that_tell_nothing_apart_are_at_chance(num: int) -> None:
    found = measured([str(number) for number in range(num)], towers(num, blind=True))
    assert found.first == pytest.approx(1 / num) == found.chance
    assert found.top == pytest.approx(min(1.0, 5 / num))
    assert found.near_chance


def test_pictures_with_equal_captions_do_not_compete() -> None:
    found = measured(["1", "2", "1", "1", "2", "3"], towers(4))
    assert (found.count, found.first) == (3, 1.0)


def test_without_two_captions_there_is_nothing_to_find() -> None:
    assert retrieval(towers(4), Data(["1"] * 9), CPU) is None  # type: ignore[arg-type]
    assert retrieval(towers(4), Data([]), CPU) is None  # type: ignore[arg-type]


def test_it_stops_at_512_pictures() -> None:
    class Many(Data):
        def chunks(self, _split: str) -> Any:
            for start in range(0, 5000, 100):
                self.read += 100
                texts = [(str(n),) for n in range(start, start + 100)]
                yield SimpleNamespace(images=np.zeros((100, 1, 1, 1), np.uint8), captions=texts)

    data = Many([])
    clip = SimpleNamespace(
        image=SimpleNamespace(encode=lambda x: torch.ones(len(x), 1)),
        text=SimpleNamespace(encode=lambda texts: SimpleNamespace(pooled=torch.ones(len(texts), 1))),
    )
    found = retrieval(clip, data, CPU)  # type: ignore[arg-type]
    assert found is not None
    assert (found.count, data.read) == (512, 600)


def test_only_what_is_near_chance_is_a_warning() -> None:
    told = str(Retrieval(480, 0.02, 0.05))
    assert told.startswith("warning: the closest of 480 captions is a held-out picture's own in 2.0% of cases")
    assert "chance is 0.2%" in told
    assert "clip.minutes" in told
    assert not str(Retrieval(480, 0.30, 0.5)).startswith("warning")
    assert str(Retrieval(10, 0.15)).startswith("warning")
    assert "closest:" not in str(Retrieval(10, 0.9))
