"""Encoded captions of all runs in one storage folder, so that a caption is encoded once.

    <storage.root>/cache/captions/<first 16 digits of the encoder key>/
        encoder.json            which towers and storage type
        <sha256>.arrow          a part: rows of `captions.caption_table`, under the hash of its own bytes

Parts are only ever added. A part whose bytes are not those of its name is as good as none.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from workflows.embed.manifest import ID_BYTES
from workflows.errors import InvalidData, StorageUnwritable
from workflows.storage.atomic import write_whole
from workflows.storage.hashing import file_sha256
from workflows.storage.mapped import ENDING, MappedShard, write_hashed

STORE: Final = "cache/captions"
ENCODER_FILE: Final = "encoder.json"
_DIGITS: Final = 16


@final
@dataclass(frozen=True)
class CaptionStore:
    """The captions that one encoder has encoded.

    Attributes:
        folder: of the encoder.
    """

    folder: Path

    @staticmethod
    def of(root: Path, encoder: str) -> CaptionStore:
        """The store of an encoder key under a storage folder."""
        return CaptionStore(root / STORE / encoder[:_DIGITS])

    def parts(self) -> list[Path]:
        """Every part, in order of names."""
        return sorted(self.folder.glob(f"*{ENDING}"))

    def find(self, ids: pa.FixedSizeBinaryArray) -> tuple[list[str], NDArray[np.int64]]:
        """Which part holds each of some captions; parts that cannot be read are left out.

        Holds the ids of one part at a time.

        Returns:
            Names of parts, and for each caption an index into them, -1 where no part has it.
        """
        names: list[str] = []
        found = np.full(len(ids), -1, np.int64)
        for part in self.parts():
            try:
                known = MappedShard.open(part).column("caption_id")
            except (OSError, InvalidData):
                continue
            here = pc.is_in(ids, value_set=known).to_numpy(zero_copy_only=False) & (found < 0)
            found[here] = len(names)
            names.append(part.name)
        return names, found

    def take(self, names: Iterable[str], ids: list[bytes]) -> pa.Table | None:
        """The rows of some captions, of those that intact parts hold; None: of none. Damaged parts are removed."""
        wanted = pa.array(ids, pa.binary(ID_BYTES))
        tables = []
        for name in names:
            part = self.folder / name
            if not is_intact(part):
                part.unlink(missing_ok=True)
                continue
            table = MappedShard.open(part).table()
            tables.append(table.filter(pc.is_in(table["caption_id"], value_set=wanted)))
        return pa.concat_tables(tables) if tables else None

    def add(self, table: pa.Table) -> Path:
        """Writes a part under the hash of its bytes, atomically.

        Raises:
            StorageUnwritable: the folder is full or read-only.
        """
        with self._writing():
            return write_hashed(self.folder, table)

    def describe(self, clip: dict[str, Any], dtype: str) -> None:
        """Writes `encoder.json`, for `raverse cache list`.

        Raises:
            StorageUnwritable: the folder is full or read-only.
        """
        with self._writing():
            write_whole(self.folder / ENCODER_FILE, json.dumps({"clip": clip, "dtype": dtype}, indent=2))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageUnwritable(
                f"cannot write into {self.folder} ({error}): free space, or set storage.root elsewhere"
            ) from None


def is_intact(part: Path) -> bool:
    """Whether a part is there and its bytes are those of its name."""
    return part.is_file() and file_sha256(part) == part.stem
