"""The text encoder deployment: prompts of many requests in one pass of the text tower.

A caller names the model version along with the prompt, so that the embedding always comes from the tower
that the denoiser of that version was trained with, also while versions change.
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
_TEXTS_PER_SAMPLER: Final = 512


@final
class CachedTower:
    """A text tower that remembers the texts it encoded last.

    Memory: a text of n tokens takes about 4 n width bytes, 160 kB with CLIP ViT-B/32 (77 x 512); so 4096 texts take
    655 MB at most.

    Args:
        tower: encodes what is not remembered.
        size: texts to remember.
    """

    def __init__(self, tower: Encoder, size: int = _TEXTS) -> None:
        self._tower = tower
        self._known: LRUCache[str, EncodedText] = LRUCache(size)

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """One row per text; those not remembered are encoded in one pass."""
        found = {text: self._known[text] for text in texts if text in self._known}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            found |= zip(new, _rows(self._tower.encode(new)), strict=True)
        for text in texts:
            self._known[text] = found[text]
        return [found[text] for text in texts]


@final
class TextEncoder:
    """Encodes texts for the samplers, with the towers of the versions that are asked for.

    Memory: two towers of each served model, the present version's and that of the next, or of a challenger; and what
    each remembers, see `CachedTower`.
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
            model: NAME/VERSION, whose tower is wanted.
            text: at most the tower's context length of it counts.

        Returns:
            One row.
        """
        encoded: EncodedText = await self._encode_batch((model, text))
        return encoded

    # It takes what has arrived and never waits for more.
    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0
    )
    async def _encode_batch(self, calls: list[tuple[str, str]]) -> list[EncodedText]:
        return await asyncio.to_thread(self._encode_all, calls)

    def _encode_all(self, calls: Sequence[tuple[str, str]]) -> list[EncodedText]:
        found: dict[tuple[str, str], EncodedText] = {}
        for model in dict.fromkeys(model for model, _ in calls):
            texts = [text for name, text in calls if name == model]
            found |= {(model, text): row for text, row in zip(texts, self._tower(model).encode(texts), strict=True)}
        return [found[call] for call in calls]

    def _tower(self, model: str) -> CachedTower:
        tower = self._towers.get(model)
        if tower is None:
            folder = resolve(self._tracking_uri, model).folder
            tower = self._towers[model] = CachedTower(load_clip(clip_folder(folder)).text)
        return tower


@final
class TextClient:
    """A sampler's way to the encoder, which it does not ask again for the 512 texts that it asked for last.

    Memory: 512 texts, see `CachedTower`; 82 MB with CLIP ViT-B/32.

    Args:
        encoder: the deployment.
    """

    def __init__(self, encoder: DeploymentHandle[Any]) -> None:
        self._encoder = encoder
        self._known: LRUCache[tuple[str, str], EncodedText] = LRUCache(_TEXTS_PER_SAMPLER)

    async def encode(self, model: str, texts: Sequence[str]) -> list[EncodedText]:
        """One row per text, by the tower of this version."""
        # Taken before the wait: in it, other requests may push a known text out.
        found = {text: self._known[model, text] for text in texts if (model, text) in self._known}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        rows = await asyncio.gather(*(self._encoder.encode.remote(model, text) for text in new))
        found |= zip(new, rows, strict=True)
        for text in texts:
            self._known[model, text] = found[text]
        return [found[text] for text in texts]


def _rows(encoded: EncodedText) -> list[EncodedText]:
    """One row each, in memory of its own: a remembered row must not hold its batch."""
    return [EncodedText(*(part[row : row + 1].clone() for part in encoded)) for row in range(len(encoded.tokens))]
