"""The text encoder deployment: prompts of many requests in one pass of the text tower.

A caller names the model version along with the prompt. So the embedding always comes from the tower with which the
denoiser of that version was trained, also while versions change.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, final

from ray import serve
from ray.serve.handle import DeploymentHandle

from workflows.model.model import clip_folder
from workflows.package.reference import find_version, resolve
from workflows.serve.settings import ServeArgs
from workflows.towers.clip import load_clip
from workflows.towers.features import EncodedText
from workflows.towers.features import TextEncoder as Encoder

MAX_BATCH: Final = 64
_TOWERS_PER_MODEL: Final = 2
_TEXTS: Final = 4096
_TEXTS_PER_REPLICA: Final = 512


@final
class CachedTower:
    """A text tower with a cache of the texts that were used last.

    Args:
        tower: encodes new texts.
        size: texts in the cache.
    """

    def __init__(self, tower: Encoder, size: int = _TEXTS) -> None:
        self._tower, self._size = tower, size
        self._cache: OrderedDict[str, EncodedText] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encodes texts to one row each; the texts that are not in the cache take one pass of the tower."""
        encoded = {text: self._cache[text] for text in texts if text in self._cache}
        new = [text for text in dict.fromkeys(texts) if text not in encoded]
        if new:
            encoded |= zip(new, _rows(self._tower.encode(new)), strict=True)
        for text in texts:
            self._cache[text] = encoded[text]
            self._cache.move_to_end(text)
        while len(self._cache) > self._size:
            self._cache.popitem(last=False)
        return [encoded[text] for text in texts]


@final
class TextEncoder:
    """The deployment that encodes texts, with the towers of the versions that the replicas serve.

    It holds at most two towers per served model: of the current version, and of the next one or a challenger.

    Args:
        args: the registry and the served models.
    """

    def __init__(self, args: ServeArgs) -> None:
        self._tracking_uri = args.tracking_uri
        self._towers: OrderedDict[str, CachedTower] = OrderedDict()
        self._max_towers = _TOWERS_PER_MODEL * len(args.references)
        for reference in args.references:
            version = find_version(args.tracking_uri, reference)
            name = f"{version.name}/{version.version}"
            if clip_folder(resolve(args.tracking_uri, name).folder).is_dir():
                self._tower(name)

    async def encode(self, model: str, text: str) -> EncodedText:
        """Encodes one text.

        Args:
            model: NAME/VERSION; the text goes through the tower of this version.
            text: tokens beyond the tower's context length are cut off.

        Returns:
            One row.
        """
        encoded: EncodedText = await self._encode_batch((model, text))
        return encoded

    # A batch takes the texts that have arrived and never waits for more.
    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0
    )
    async def _encode_batch(self, calls: list[tuple[str, str]]) -> list[EncodedText]:
        return await asyncio.to_thread(self._encode_all, calls)

    def _encode_all(self, calls: Sequence[tuple[str, str]]) -> list[EncodedText]:
        encoded: dict[tuple[str, str], EncodedText] = {}
        for model in dict.fromkeys(model for model, _ in calls):
            texts = [text for name, text in calls if name == model]
            encoded |= {(model, text): row for text, row in zip(texts, self._tower(model).encode(texts), strict=True)}
        return [encoded[call] for call in calls]

    def _tower(self, model: str) -> CachedTower:
        tower = self._towers.get(model)
        if tower is None:
            folder = resolve(self._tracking_uri, model).folder
            tower = self._towers[model] = CachedTower(load_clip(clip_folder(folder)).text)
        self._towers.move_to_end(model)
        while len(self._towers) > self._max_towers:
            self._towers.popitem(last=False)
        return tower


@final
class TextClient:
    """A replica's client of the text encoder, with a cache of the 512 texts that were used last.

    Args:
        encoder: handle of the deployment.
    """

    def __init__(self, encoder: DeploymentHandle[Any]) -> None:
        self._encoder = encoder
        self._cache: OrderedDict[tuple[str, str], EncodedText] = OrderedDict()

    async def encode(self, model: str, texts: Sequence[str]) -> list[EncodedText]:
        """Encodes texts to one row each, by the tower of the version NAME/VERSION."""
        new = [text for text in dict.fromkeys(texts) if (model, text) not in self._cache]
        rows = await asyncio.gather(*(self._encoder.encode.remote(model, text) for text in new))
        fresh = dict(zip(new, rows, strict=True))
        encoded = [fresh[text] if text in fresh else self._cache[model, text] for text in texts]
        for text, row in zip(texts, encoded, strict=True):
            self._cache[model, text] = row
            self._cache.move_to_end((model, text))
        while len(self._cache) > _TEXTS_PER_REPLICA:
            self._cache.popitem(last=False)
        return encoded


def _rows(encoded: EncodedText) -> list[EncodedText]:
    """Splits a batch into rows with memory of their own: a row in a cache must not keep its batch alive."""
    return [EncodedText(*(part[row : row + 1].clone() for part in encoded)) for row in range(len(encoded.tokens))]
