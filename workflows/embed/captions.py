"""One shard of captions: their text, and what the text tower says about them.

Torch and open_clip are imported where the tower runs, not where the pass is planned: it takes seconds.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from workflows.data.dataset import Dataset
from workflows.embed.caption_index import texts_of
from workflows.embed.checksums import caption_checks
from workflows.embed.manifest import ID_BYTES, caption_id
from workflows.embed.store import CaptionStore
from workflows.storage.shards import Shard, keyed
from workflows.storage.shelf import Shelf

if TYPE_CHECKING:
    from torch import Tensor

    from workflows.towers.features import EncodedText, TextEncoder

_ID: Final = pa.binary(ID_BYTES)


@final
class CaptionShardWriter:
    """Encodes captions and writes them; an actor class for Ray Data's `map_batches`.

    It computes on one thread, because the last bits of a product depend on the number of threads, and a
    cache must not depend on how busy the machine is. It holds one shard, at most 64 MiB, about three times.

    Args:
        dataset: whose captions they are.
        clip_folder: the towers.
        shelf: for the shards.
        encoder: key of the text tower.
        dtype: storage type of the tokens.
        batch_size: captions per call of the tower.
        num_gpus: how many this actor has been given.
        store: of captions that are encoded already; None: there is none.
    """

    def __init__(
        self,
        dataset: Dataset,
        clip_folder: Path,
        shelf: Shelf,
        encoder: str,
        dtype: str,
        batch_size: int,
        num_gpus: int,
        store: CaptionStore | None = None,
    ) -> None:
        self._dataset, self._clip_folder, self._shelf = dataset, clip_folder, shelf
        self._num_gpus, self._store = num_gpus, store
        self._encoder, self._dtype, self._batch_size = encoder, dtype, batch_size

    @cached_property
    def _text(self) -> TextEncoder:
        """Loaded with the first block: what fails in a constructor, Ray reports as the death of an actor."""
        import torch

        from workflows.towers.clip import load_clip

        torch.set_num_threads(1)
        return load_clip(self._clip_folder, "cuda" if self._num_gpus and torch.cuda.is_available() else "cpu").text

    def __call__(self, block: pa.Table) -> pa.Table:
        """Writes the shard of each work item in the block; returns what was written, and how many were `encoded`.

        An item says where its text is (`CaptionIndex.item`) and has `path`, `key`, and the names of the `parts` of the
        store that hold some of its captions.

        Raises:
            InvalidClip: towers that do not load.
            StorageUnwritable: the folder or the store is full or read-only.
        """
        return pa.Table.from_pylist([self._write(item) for item in block.to_pylist()])

    def _write(self, item: dict[str, Any]) -> dict[str, Any]:
        captions = {caption_id(self._encoder, text): text for text in texts_of(self._dataset, item)}
        known = self._store.take(item["parts"], list(captions)) if self._store and item["parts"] else None
        tables = [] if known is None else [known]
        missing = captions.keys() - set(() if known is None else known["caption_id"].to_pylist())
        if missing:
            tables.append(self._encoded({key: text for key, text in captions.items() if key in missing}))
        table = pa.concat_tables(tables).combine_chunks()
        places = pc.index_in(pa.array(list(captions), _ID), value_set=table["caption_id"].combine_chunks())
        shard = self._save(item, table.take(places).combine_chunks(), tables[1:] if tables[0] is known else tables)
        return asdict(shard) | {"encoded": len(missing)}

    def _save(self, item: dict[str, Any], table: pa.Table, new: list[pa.Table]) -> Shard:
        """Writes the shard; the store has the new rows from now on."""
        if self._store is not None and new and new[0].num_rows == table.num_rows:
            # All rows are new: the part is the shard, and a copy costs less than a second hash.
            part = self._store.add(keyed(table, item["key"]))
            return self._shelf.copy(item["path"], table.num_rows, part, item["key"])
        if self._store is not None and new:
            self._store.add(new[0])
        return self._shelf.write(item["path"], table, item["key"])

    def _encoded(self, captions: dict[bytes, str]) -> pa.Table:
        texts = list(captions.values())
        return caption_table(list(captions), texts, self._encode(texts), self._dtype)

    def _encode(self, captions: list[str]) -> EncodedText:
        import torch

        from workflows.towers.features import EncodedText

        batches = [captions[i : i + self._batch_size] for i in range(0, len(captions), self._batch_size)]
        encoded = [[part.cpu() for part in self._text.encode(batch)] for batch in batches]
        return EncodedText(*(torch.cat(parts) for parts in zip(*encoded, strict=True)))


@final
class TextShardWriter:
    """Writes captions that are encoded while training; a stateless function for Ray Data's `map`.

    Args:
        dataset: whose captions they are.
        shelf: for the shards.
        encoder: key of the text tower.
    """

    def __init__(self, dataset: Dataset, shelf: Shelf, encoder: str) -> None:
        self._dataset, self._shelf, self._encoder = dataset, shelf, encoder

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Writes the shard of one work item, as `CaptionShardWriter` does but without features."""
        texts = texts_of(self._dataset, item)
        table = text_table([caption_id(self._encoder, text) for text in texts], texts)
        return asdict(self._shelf.write(item["path"], table, item["key"]))


def text_table(ids: list[bytes], captions: list[str]) -> pa.Table:
    """The rows of a shard of captions that are not encoded."""
    checks = caption_checks([text.encode() for text in captions])
    return pa.table(
        {"caption_id": pa.array(ids, _ID), "caption": pa.array(captions, pa.string()), "check": pa.array(checks)}
    )


def caption_table(ids: list[bytes], captions: list[str], encoded: EncodedText, dtype: str) -> pa.Table:
    """The rows of a caption shard; bfloat16 tokens are stored as their 16 bits (uint16).

    A row has the tokens of the positions that its mask keeps, no others: a tower that reads its padding has them all.
    """
    mask, pooled = encoded.mask.cpu().numpy(), encoded.pooled.float().cpu().numpy()
    tokens = _stored(encoded.tokens[encoded.mask], dtype)
    ends = np.cumsum(mask.sum(axis=1))
    checks = caption_checks(np.split(tokens, ends[:-1]), mask, pooled)
    return pa.table(
        {
            "caption_id": pa.array(ids, _ID),
            "caption": pa.array(captions, pa.string()),
            "mask": _fixed_lists(mask.astype(np.uint8)),
            "tokens": pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), _fixed_lists(tokens)),
            "pooled": _fixed_lists(pooled),
            "check": pa.array(checks),
        }
    )


def _fixed_lists(values: NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def _stored(tokens: Tensor, dtype: str) -> NDArray[Any]:
    import torch

    if dtype == "bfloat16":
        return tokens.to(torch.bfloat16).view(torch.uint16).cpu().numpy()
    return tokens.to(getattr(torch, dtype)).cpu().numpy()
