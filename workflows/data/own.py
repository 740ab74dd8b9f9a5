"""One piece of a user's data: records are checked and decoded, and what can be used is written to a part.

A part is a Parquet file that later runs find again, so an import that was killed goes on with the missing parts.
Beside it lie the records that were refused, or kept with a change, each with its reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, final

import pyarrow as pa
from numpy.typing import NDArray

from workflows.config.schema import DataConfig
from workflows.data.intake import Intake
from workflows.data.picture import Found
from workflows.data.sources import SOURCES
from workflows.data.sources.location import Location
from workflows.data.sources.record import Columns, Record
from workflows.errors import InvalidData
from workflows.storage.shards import ShardWriter, write_shard

PART: Final = pa.schema(
    {
        "name": pa.string(),
        "image": pa.binary(),
        "captions": pa.list_(pa.string()),
        "label": pa.string(),
        "digest": pa.binary(16),
    }
)
REJECTED: Final = pa.schema({"name": pa.string(), "kept": pa.bool_(), "reason": pa.string()})
_LONGEST_NAME: Final = 500
_ROWS_AT_ONCE: Final = 512
"""Of a part; a tar file may give many thousands, which must not all be in memory at once."""


@final
@dataclass(frozen=True)
class Rules:
    """What a record must be to be used.

    Attributes:
        intake: how its contents become a row.
        max_caption_chars: longer captions are cut.
        needs_label: whether a record without a label is refused.
    """

    intake: Intake
    max_caption_chars: int
    needs_label: bool = False


def columns_of(config: DataConfig) -> Columns:
    """The columns that a configuration names."""
    return Columns(config.image_column, config.caption_column, config.label_column, config.vector_columns)


def rules_of(config: DataConfig, intake: Intake) -> Rules:
    """What a configuration asks of each record."""
    return Rules(intake, config.max_caption_chars, needs_label=config.label_column is not None)


@final
@dataclass(frozen=True)
class Usable:
    """A record that can be used: its raw row, cleaned captions, and what had to be changed."""

    record: Record
    row: NDArray[Any]
    captions: tuple[str, ...]
    found: Found
    changes: tuple[str, ...]


def use(record: Record, rules: Rules) -> Usable:
    """Checks and decodes a record.

    Raises:
        InvalidData: why it cannot be used.
    """
    if record.fault is not None:
        raise InvalidData(record.fault)
    captions, changes = clean_captions(record.captions, rules.max_caption_chars)
    if not captions:
        raise InvalidData("no caption" if not record.captions else "every caption is empty")
    if rules.needs_label and record.label is None:
        raise InvalidData("no label, though data.label_column is set")
    if record.label is not None and _unicode(record.label) != record.label:
        record = replace(record, label=_unicode(record.label))
        changes = (*changes, "what is no Unicode text replaced in the label")
    row, found = rules.intake.read(record.image)
    if found.frames > 1:
        changes = (*changes, f"animated: the first of {found.frames} frames is used")
    return Usable(record, row, captions, found, changes)


def _unicode(text: str) -> str:
    """Text without lone surrogates, which no file of UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()


def clean_captions(captions: Iterable[str], max_chars: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions that any tool can read, each once, and what was done to them."""
    cleaned: list[str] = []
    changes: dict[str, None] = {}
    for caption in captions:
        text = _unicode(caption)
        readable = "".join(" " if ord(char) < 32 or ord(char) == 127 else char for char in text).strip()
        if "\0" in text:
            changes["NUL removed from a caption"] = None
        if text != caption:
            changes["what is no Unicode text replaced in a caption"] = None
        if len(readable) > max_chars:
            changes[f"a caption of {len(readable)} characters cut to {max_chars}"] = None
            readable = readable[:max_chars].strip()
        if readable and readable not in cleaned:
            cleaned.append(readable)
        elif not readable:
            changes["an empty caption left out"] = None
    return tuple(cleaned), tuple(changes)


@final
@dataclass(frozen=True)
class PieceImporter:
    """Writes the parts of work items; a stateless function for Ray Data's `map`.

    Attributes:
        source: name of the format.
        location: of the data.
        columns: of the source.
        rules: for every record.
        folder: where parts go.
    """

    source: str
    location: Location
    columns: Columns
    rules: Rules
    folder: Path

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Writes the part and the rejects of one work item (`piece`, `path`, `key`); returns the part's shard.

        Raises:
            InvalidData: a file that cannot be read at all.
            StorageUnwritable: the folder is full or read-only.
        """
        rejected: list[dict[str, Any]] = []
        with ShardWriter(self.folder, item["path"], PART, item["key"]) as writer:
            accepted = _accepted(self._records(item["piece"]), self.rules, rejected)
            while rows := list(islice(accepted, _ROWS_AT_ONCE)):
                writer.write(pa.Table.from_pylist(rows, schema=PART))
            # The part comes last: a later run takes it as the sign that both are whole.
            rejects = pa.Table.from_pylist(rejected, schema=REJECTED)
            write_shard(self.folder, rejected_path(item["path"]), rejects, item["key"])
            return asdict(writer.finish())

    def _records(self, piece: dict[str, Any]) -> Iterator[Record]:
        return SOURCES[self.source].read(self.location, piece, self.columns)


def _accepted(records: Iterable[Record], rules: Rules, rejected: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Records that can be used, as rows of `PART`; what there is to say about others goes to `rejected`."""
    for record in records:
        try:
            usable = use(record, rules)
        except InvalidData as error:
            rejected.append(_remark(record, str(error), kept=False))
            continue
        rejected.extend(_remark(record, change, kept=True) for change in usable.changes)
        yield _row(usable, rules.intake)


def rejected_path(path: str) -> str:
    """Where the rejects of a part lie."""
    return path.replace(".parquet", ".rejected.parquet")


def _row(usable: Usable, intake: Intake) -> dict[str, Any]:
    return {
        "name": _unicode(usable.record.name),
        "image": intake.encode(usable.row),
        "captions": list(usable.captions),
        "label": usable.record.label,
        "digest": hashlib.sha256(usable.row.tobytes()).digest()[:16],
    }


def _remark(record: Record, reason: str, *, kept: bool) -> dict[str, Any]:
    return {"name": _unicode(record.name)[:_LONGEST_NAME], "kept": kept, "reason": _unicode(reason)}
