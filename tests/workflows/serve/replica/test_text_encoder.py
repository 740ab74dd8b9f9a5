"""Texts that were asked for before are not encoded again, and come out the same."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from workflows.model.model import clip_folder
from workflows.serve.replica.text_encoder import CachedTower, TextClient
from workflows.towers.clip import TextTower, load_clip
from workflows.towers.features import EncodedText


class Counted:
    """The real tower, and what it was asked."""

    def __init__(self, tower: TextTower) -> None:
        self._tower, self.asked = tower, list[list[str]]()

    def encode(self, captions: Sequence[str]) -> EncodedText:
        self.asked.append(list(captions))
        return self._tower.encode(captions)


class CountedHandle:
    """A handle of the encoder, and what it was asked."""

    def __init__(self, tower: TextTower) -> None:
        self._tower, self.asked, self.encode = CachedTower(tower), list[tuple[str, str]](), self

    async def remote(self, model: str, text: str) -> EncodedText:
        self.asked.append((model, text))
        return self._tower.encode([text])[0]


def test_a_replica_asks_the_encoder_once_per_version_and_text(tiny_package: Path) -> None:
    handle = CountedHandle(load_clip(clip_folder(tiny_package)).text)
    client = TextClient(handle)  # type: ignore[arg-type]
    first = asyncio.run(client.encode("tiny/1", ["a one", "a two", "a one"]))
    again = asyncio.run(client.encode("tiny/1", ["a two", "a one"]))
    asyncio.run(client.encode("tiny/2", ["a one"]))
    assert handle.asked == [("tiny/1", "a one"), ("tiny/1", "a two"), ("tiny/2", "a one")]
    assert torch.equal(first[0].tokens, again[1].tokens) and torch.equal(first[2].tokens, first[0].tokens)
    assert not torch.equal(first[0].tokens, first[1].tokens)


def test_a_text_that_others_push_out_meanwhile_is_answered() -> None:
    """While one request waits for the encoder, another fills the sampler's memory."""

    class Busy:
        async def remote(self, model: str, text: str) -> str:
            if text == "slow":
                await client.encode(model, [f"text {number}" for number in range(600)])
            return f"{text}, encoded"

        encode = property(lambda self: self)

    client = TextClient(Busy())  # type: ignore[arg-type]
    asyncio.run(client.encode("tiny/1", ["known"]))
    assert asyncio.run(client.encode("tiny/1", ["known", "slow"])) == ["known, encoded", "slow, encoded"]


@pytest.fixture
def counted(tiny_package: Path) -> Any:
    return Counted(load_clip(clip_folder(tiny_package)).text)


def test_only_new_texts_are_encoded_all_in_one_pass(counted: Any) -> None:
    tower = CachedTower(counted)
    tower.encode(["a one", "a two"])
    tower.encode(["a two", "a three", "a three", "a four"])
    tower.encode(["a one", "a four"])
    assert counted.asked == [["a one", "a two"], ["a three", "a four"]]


def test_each_row_is_that_of_its_own_text(counted: Any) -> None:
    tower, texts = CachedTower(counted), ["a one", "a handwritten two", "a one"]
    for _ in range(2):
        for text, found in zip(texts, tower.encode(texts), strict=True):
            wanted = counted.encode([text])
            for part, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(part, other)


def test_the_oldest_text_is_forgotten(counted: Any) -> None:
    tower = CachedTower(counted, size=2)
    for text in ("a one", "a two", "a one", "a three", "a one", "a two"):
        tower.encode([text])
    assert counted.asked == [["a one"], ["a two"], ["a three"], ["a two"]]


def test_a_call_larger_than_the_memory_is_answered(counted: Any) -> None:
    texts = ["a one", "a two", "a three"]
    assert len(CachedTower(counted, size=1).encode(texts)) == 3
