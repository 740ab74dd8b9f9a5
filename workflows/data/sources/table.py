"""Parquet files with a caption column and an image column: bytes, or Hugging Face's `{bytes, path}`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    LABEL_NAMES,
    Columns,
    Record,
    captions_of,
    decoded,
    label_of,
)
from workflows.errors import InvalidData

_ROWS_AT_ONCE: Final = 64
_ROWS_PER_PIECE: Final = 512


def detect(location: Location, entries: list[Entry]) -> bool:  # noqa: ARG001 -- a source's signature
    """Whether there is a Parquet file."""
    return any(entry.path.endswith(".parquet") for entry in entries)


def detect_hf(location: Location, entries: list[Entry]) -> bool:
    """Whether the first Parquet file has a struct with `bytes`."""
    schema = first_schema(location, entries)
    return schema is not None and any(
        pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0 for field in schema
    )


def first_schema(location: Location, entries: list[Entry]) -> Any:
    """Of the first Parquet file; None: there is none."""
    first = next((entry.path for entry in entries if entry.path.endswith(".parquet")), None)
    return None if first is None else _file(location, first).schema_arrow


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:
    """Stretches of row groups.

    Raises:
        InvalidData: no Parquet file, one that cannot be read, or one that lacks a column.
    """
    return cut(location, lambda schema, where: resolve(schema, columns, where))


def cut(location: Location, found: Callable[[Any, str], Sequence[str | None]]) -> Iterator[dict[str, Any]]:
    """Stretches of row groups of every file.

    Args:
        location: of the files.
        found: names the columns to read, given a schema and where it is.

    Raises:
        InvalidData: no Parquet file, or one that cannot be read.
    """
    names = [entry.path for entry in location.entries() if entry.path.endswith(".parquet")]
    if not names:
        raise InvalidData(f"no .parquet in {location.url}: set data.path to one, or choose another data.source")
    for name in names:
        file = _file(location, name)
        wanted = list(found(file.schema_arrow, f"{name} in {location.url}"))
        start, groups, count = 0, [], 0
        for group in range(file.num_row_groups):
            groups.append(group)
            count += file.metadata.row_group(group).num_rows
            if count >= _ROWS_PER_PIECE or group == file.num_row_groups - 1:
                yield {"file": name, "groups": groups, "first": start, "columns": wanted}
                start, groups, count = start + count, [], 0


def resolve(schema: Any, columns: Columns, where: str) -> tuple[str, str, str | None]:
    """Names of the image, caption and label columns.

    Raises:
        InvalidData: one is missing, or of another type.
    """
    image = column(schema, columns.image, IMAGE_NAMES, "image", where)
    caption = column(schema, columns.caption, CAPTION_NAMES, "caption", where)
    kind = schema.field(image).type
    if not (is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
        raise InvalidData(
            f"column {image!r} of {where} is {kind}, wanted bytes or a struct with bytes: set data.image_column"
        )
    kind = schema.field(caption).type
    text = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not (pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_null(text)):
        raise InvalidData(
            f"column {caption!r} of {where} is {kind}, wanted text or lists of it: set data.caption_column"
        )
    if columns.label is not None:
        return image, caption, column(schema, columns.label, (), "label", where)
    return image, caption, next((name for name in LABEL_NAMES if name in schema.names), None)


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:  # noqa: ARG001
    """The records of some row groups.

    Raises:
        InvalidData: the file is damaged.
    """
    image, caption, label = piece["columns"]
    for where, row, label_name in rows(location, piece, label):
        yield record_of(location, where, row[image], row[caption], label_name)


def rows(
    location: Location, piece: dict[str, Any], label: str | None
) -> Iterator[tuple[str, dict[str, Any], str | None]]:
    """Where each row is, its values, and its label by name.

    Raises:
        InvalidData: the file is damaged.
    """
    name, number = piece["file"], piece["first"]
    file = _file(location, name)
    names = class_names(file.schema_arrow, label)
    wanted = [column for column in piece["columns"] if column is not None]
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=list(piece["groups"]), columns=wanted):
            for row in values_of(batch):
                yield f"{name}:{number}", row, label_by_name(row.get(label) if label else None, names)
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise InvalidData(
            f"{name} in {location.url} is damaged at row {number} ({error}): repair or remove it"
        ) from None


def values_of(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as plain values; Arrow does not look whether texts are UTF-8, Python does."""
    try:
        found: list[dict[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:
        columns = {name: _texts(batch[name]) for name in batch.schema.names}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return found


def _texts(column: pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [None if data is None else decoded(data) for data in column.cast(pa.large_binary()).to_pylist()]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [None if not cell.is_valid else _texts(cell.values) for cell in column]
    return list(column.to_pylist())


def record_of(location: Location, where: str, image: Any, caption: Any, label: str | None) -> Record:
    """A record from the cells of a row."""
    try:
        data = image
        if isinstance(image, dict):
            data = image["bytes"]
            if data is None and image.get("path"):
                data = location.read(image["path"])
        return Record(where, b"" if data is None else bytes(data), captions_of(caption), label)
    except (OSError, ValueError) as error:
        return Record(where, fault=str(error))


def _file(location: Location, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(location.open(name))
    except (pa.ArrowException, OSError) as error:
        raise InvalidData(f"{name} in {location.url} is no readable Parquet ({error}): repair or remove it") from None


def column(schema: Any, wanted: str | None, usual: Sequence[str], what: str, where: str) -> str:
    """The wanted column, or the first of the usual ones.

    Raises:
        InvalidData: it is not there.
    """
    names = usual if wanted is None else (wanted,)
    for name in names:
        if name in schema.names:
            return name
    raise InvalidData(
        f"no {what} column ({', '.join(names)}) in {where}, which has {', '.join(schema.names)}: set data.{what}_column"
    )


def is_binary(kind: Any) -> bool:
    """Whether cells of this type are bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def class_names(schema: Any, label: str | None) -> list[str] | None:
    """Names of a Hugging Face ClassLabel column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return list(names)


def label_by_name(value: Any, names: list[str] | None) -> str | None:
    """A label's text, where need be by its number."""
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return label_of(value)
