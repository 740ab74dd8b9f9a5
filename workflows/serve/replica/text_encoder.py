"""The text encoder deployment: prompts of many requests in one pass of the text tower.

A caller names the model version along with the prompt. So the embedding always comes from the tower with which the
denoiser of that version was trained, also while versions change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, final

from cachetools import LRUCache
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

    Memory: a text of n tokens takes about 4 n width bytes, 160 kB with CLIP ViT-B/32 (77 x 512); so 4096 texts take
    655 MB at most.

    Args:
        tower: encodes new texts.
        size: texts in the cache.
    """

    def __init__(self, tower: Encoder, size: int = _TEXTS) -> None:
        self._tower = tower
        self._cache: LRUCache[str, EncodedText] = LRUCache(size)

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Encodes texts to one row each; the texts that are not in the cache take one pass of the tower."""
        encoded = {text: self._cache[text] for text in texts if text in self._cache}
        new = [text for text in dict.fromkeys(texts) if text not in encoded]
        if new:
            encoded |= zip(new, _rows(self._tower.encode(new)), strict=True)
        for text in texts:
            self._cache[text] = encoded[text]
        return [encoded[text] for text in texts]


@final
class TextEncoder:
    """The deployment that encodes texts, with the towers of the versions that the replicas serve.

    Memory: at most two towers per served model, for the current version and for the next one or a challenger; and the
    cache of each, see `CachedTower`.

    Args:
        args: the registry and the served models.
    """

    def __init__(self, args: ServeArgs) -> None:
        self._tracking_uri = args.tracking_uri
        self._towers: LRUCache[str, CachedTower] = LRUCache(_TOWERS_PER_MODEL * len(args.references))
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
        return tower


@final
class TextClient:
    """A replica's client of the text encoder, with a cache of the 512 texts that were used last.

    Memory: 512 texts, see `CachedTower`; 82 MB with CLIP ViT-B/32.

    Args:
        encoder: handle of the deployment.
    """

    def __init__(self, encoder: DeploymentHandle[Any]) -> None:
        self._encoder = encoder
        self._cache: LRUCache[tuple[str, str], EncodedText] = LRUCache(_TEXTS_PER_REPLICA)

    async def encode(self, model: str, texts: Sequence[str]) -> list[EncodedText]:
        """Encodes texts to one row each, by the tower of the version NAME/VERSION."""
        # The cache is read before the wait, in which other requests may push a text out of it.
        encoded = {text: self._cache[model, text] for text in texts if (model, text) in self._cache}
        new = [text for text in dict.fromkeys(texts) if text not in encoded]
        rows = await asyncio.gather(*(self._encoder.encode.remote(model, text) for text in new))
        encoded |= zip(new, rows, strict=True)
        for text in texts:
            self._cache[model, text] = encoded[text]
        return [encoded[text] for text in texts]


def _rows(encoded: EncodedText) -> list[EncodedText]:
    """Splits a batch into rows with memory of their own: a row in a cache must not keep its batch alive."""
    return [EncodedText(*(part[row : row + 1].clone() for part in encoded)) for row in range(len(encoded.tokens))]
