"""Rows of a cache by their number, read from the shards that have them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workflows.embed.checksums import crc, sample_check
from workflows.embed.manifest import DTYPES, Manifest
from workflows.errors import InvalidData
from workflows.storage.copies import REMEDY, CopySettings, OpenShards
from workflows.storage.mapped import MappedShard
from workflows.storage.shards import Shard

Indices: TypeAlias = Tensor | NDArray[np.int64] | Sequence[int]
View = TypeVar("View")


class Visit(NamedTuple):
    """Some of the wanted rows, all in one shard."""

    places: NDArray[np.int64]
    """Their places among the wanted rows."""
    rows: NDArray[np.int64]
    """Their places in the shard."""


@final
class RowReader:
    """Finds rows in the shards of a manifest.

    Memory: the manifest, about 700 bytes a shard, and what `OpenShards` states.

    Args:
        folder: of the manifest.
        manifest: what there is.
        copies: where copies of a store's shards go.
    """

    def __init__(self, folder: Path, manifest: Manifest, copies: CopySettings) -> None:
        self.manifest, self.place = manifest, manifest.place(folder)
        self.opened = OpenShards(self.place, copies)
        self._shards: dict[str, tuple[Shard, ...]] = {}

    def shards(self, prefix: str) -> tuple[Shard, ...]:
        """The shards under `captions` or `SPLIT/images`, in order."""
        if prefix not in self._shards:
            self._shards[prefix] = self.manifest.shards(prefix)
        return self._shards[prefix]

    def shard_rows(self, prefix: str) -> int:
        """Rows of each of these shards but the last."""
        return self.manifest.shard_rows[prefix.rpartition("/")[2]]

    def visit(
        self, prefix: str, indices: Indices, view: Callable[[MappedShard, str], View]
    ) -> Iterator[tuple[Visit, View]]:
        """Visits each shard that has some of the rows; yields which rows, and the shard as `view` shows it.

        Raises:
            InvalidData: a shard is missing or damaged.
        """
        rows = torch.as_tensor(indices, dtype=torch.int64).numpy()
        numbers = rows // self.shard_rows(prefix)
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            shard = self._shard(prefix, int(number))
            name = str(self.place / shard.path)
            opened = self.opened.open(shard)
            with _damage_is_named(name):
                shown = view(opened, name)
            yield Visit(places, rows[places] - number * self.shard_rows(prefix)), shown

    def _shard(self, prefix: str, number: int) -> Shard:
        shards = self.shards(prefix)
        if not 0 <= number < len(shards):
            raise InvalidData(
                f"{self.place}: the manifest has {len(shards)} shards of {prefix}, wanted number {number}"
            )
        return shards[number]


@final
class ImageRows:
    """The rows of an image shard.

    Args:
        shard: that is open.
        name: in messages.
    """

    def __init__(self, shard: MappedShard, name: str) -> None:
        self._name = name
        self._images = shard.column("image").to_numpy_ndarray()
        self._image_checks = shard.column("image_check").to_numpy()
        self._ids, self._labels = shard.column("sample_id").to_numpy(), shard.column("label").to_numpy()
        self._starts = shard.column("captions").offsets.to_numpy()
        self._captions, self._checks = shard.column("captions").values.to_numpy(), shard.column("check").to_numpy()

    def images(self, rows: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[Any]:
        """Some rows, checked; shape: of a row, as the manifest says."""
        _check_shape(self._images.shape[1:], shape, self._name)
        with _damage_is_named(self._name):
            found: NDArray[Any] = self._images[rows]
        for row, image in zip(rows, found, strict=True):
            _check(crc(image), self._image_checks[row], self._name, row)
        return found

    def sample(self, row: int) -> tuple[int, int, NDArray[np.int32]]:
        """Sample id, label and positions of captions of a row, checked."""
        with _damage_is_named(self._name):
            key, label = int(self._ids[row]), int(self._labels[row])
            captions = self._captions[self._starts[row] : self._starts[row + 1]]
        _check(sample_check(key, label, captions), self._checks[row], self._name, row)
        return key, label, captions


@final
class CaptionRows:
    """The rows of a shard of captions.

    Args:
        shard: that is open.
        name: in messages.
    """

    def __init__(self, shard: MappedShard, name: str) -> None:
        self._name, self._checks = name, shard.column("check").to_numpy()
        self.mask, self.pooled = (_lists(shard.column(column)) for column in ("mask", "pooled"))
        tokens = shard.column("tokens")
        self._starts, self._tokens = tokens.offsets.to_numpy(), _lists(tokens.values)

    def check_columns(self, num_tokens: int, width: int, pooled: int, dtype: str) -> None:
        """Compares the columns' widths with those of the towers, and the type of the tokens with the manifest's.

        Raises:
            InvalidData: they are others.
        """
        found = self.mask.shape[1], self._tokens.shape[1], self.pooled.shape[1]
        _check_shape(found, (num_tokens, width, pooled), self._name)
        if self._tokens.dtype != DTYPES[dtype]:
            raise InvalidData(f"{self._name} has tokens of {self._tokens.dtype}, wanted {dtype}: {REMEDY}")

    def tokens(self, row: int) -> NDArray[Any]:
        """The tokens that are stored of a row, (kept, d), checked."""
        with _damage_is_named(self._name):
            found = self._tokens[self._starts[row] : self._starts[row + 1]]
        _check(crc(found, self.mask[row], self.pooled[row]), self._checks[row], self._name, row)
        return found


@final
class TextRows:
    """The rows of a shard of captions that are not encoded.

    Args:
        shard: that is open.
        name: in messages.
    """

    def __init__(self, shard: MappedShard, name: str) -> None:
        self._name, self._checks = name, shard.column("check").to_numpy()
        _, starts, values = shard.column("caption").buffers()
        self._starts = np.frombuffer(starts, np.int32)[: shard.rows + 1]
        self._values = memoryview(values) if values is not None else memoryview(b"")

    def text(self, row: int) -> str:
        """A caption, checked."""
        # By the offsets and not by pyarrow, which would follow a damaged one out of the file.
        found = bytes(self._values[self._starts[row] : self._starts[row + 1]])
        _check(crc(found), self._checks[row], self._name, row)
        with _damage_is_named(self._name):
            return found.decode()


@contextlib.contextmanager
def _damage_is_named(name: str) -> Iterator[None]:
    """A part of the way from an open shard to its rows.

    Raises:
        InvalidData: the shard's metadata do not fit its content.
    """
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise InvalidData(f"{name} is damaged ({error}): {REMEDY}") from None


def _lists(column: Any) -> NDArray[Any]:
    """(rows, size) of a column of lists of one size."""
    values: NDArray[Any] = column.values.to_numpy()
    return values.reshape(-1, column.type.list_size)


def _check_shape(found: tuple[int, ...], wanted: tuple[int, ...], name: str) -> None:
    if found != wanted:
        raise InvalidData(f"{name} has rows of shape {found}, wanted {wanted}: {REMEDY}")


def _check(found: int, wanted: int, name: str, row: int) -> None:
    if found != wanted:
        raise InvalidData(f"{name} was changed: row {row} has checksum {found:08x}, wanted {wanted:08x}: {REMEDY}")
