"""Parquet files with a caption column and an image column: bytes, base64, a path, or Hugging Face's `{bytes, path}`.

A file that cannot be read, or that lacks a column which others have, costs its own rows alone: they are refused.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from workflows.data.content import is_picture
from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    LABEL_NAMES,
    WINDOWS,
    Columns,
    Record,
    captions_of,
    is_image,
    keys_found,
    label_of,
    read_text,
    thinned,
)
from workflows.errors import InvalidData

_ROWS_AT_ONCE: Final = 64
_ROWS_PER_PIECE: Final = 512
_PEEKED: Final = 64
_LINKS: Final = ("http://", "https://", "s3://", "gs://")
_LIST_KINDS: Final = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")


def parquet_files(entries: list[Entry]) -> list[Entry]:
    """The Parquet files among the entries."""
    return [entry for entry in entries if entry.path.lower().endswith((".parquet", ".parq"))]


def sees(location: Location, entries: list[Entry]) -> int:
    """About how many rows have a picture as bytes; see `rows_seen`."""
    return rows_seen(location, entries, lambda schema, peek: _holds_pictures(schema, peek, structs=False))


def sees_hf(location: Location, entries: list[Entry]) -> int:
    """About how many rows have a picture as a struct; see `rows_seen`."""
    return rows_seen(location, entries, lambda schema, peek: _holds_pictures(schema, peek, structs=True))


def rows_seen(location: Location, entries: list[Entry], fits: Callable[[Any, Callable[[str], list[Any]]], bool]) -> int:
    """About how many rows the files have, judged by the first that can be read; 0: they do not fit; 1: none can."""
    files = parquet_files(entries)
    for entry in files[:20]:
        try:
            file = _file(location, entry.path)
            if not fits(file.schema_arrow, lambda name, file=file: _peek(file, name)):  # type: ignore[misc]
                return 0
        except (InvalidData, pa.ArrowException, OSError):
            continue
        return max(1, round(int(file.metadata.num_rows) * sum(each.size for each in files) / max(entry.size, 1)))
    return int(bool(files))


def _peek(file: pq.ParquetFile, name: str) -> list[Any]:
    """The first filled cells of a column."""
    for batch in file.iter_batches(_PEEKED, columns=[name]):
        return [value for value in values_of(batch)[name] if value is not None]
    return []


def _holds_pictures(schema: Any, peek: Callable[[str], list[Any]], *, structs: bool) -> bool:
    try:
        name = image_column(schema, None, peek, "")
    except InvalidData:
        return False
    return bool(pa.types.is_struct(schema.field(name).type)) == structs


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:
    """Stretches of row groups.

    Raises:
        InvalidData: no Parquet file, or none that can be read and has the columns.
    """
    return cut(location, lambda schema, where, peek: resolve(schema, columns, where, peek))


Found = Callable[[Any, str, Callable[[str], list[Any]]], Sequence[str | None]]


def cut(location: Location, found: Found) -> Iterator[dict[str, Any]]:
    """Stretches of row groups of every file; those of a file that cannot be used have its fault.

    Args:
        location: of the files.
        found: names the columns to read, given a schema, where it is, and a look at a column's first cells.

    Raises:
        InvalidData: no Parquet file, or none that can be used.
    """
    entries = parquet_files(location.entries())
    if not entries:
        raise InvalidData(f"no .parquet in {location.url}: set data.path to one, or choose another data.source")
    faults: dict[str, InvalidData] = {}
    bytes_seen, rows_found = 0, 0
    for entry in entries:
        try:
            file = _file(location, entry.path)
            bytes_seen, rows_found = bytes_seen + entry.size, rows_found + file.metadata.num_rows
            wanted = list(found(file.schema_arrow, f"{entry.path} in {location.url}", _peeker(file)))
        except InvalidData as error:
            faults[entry.path] = error
            continue
        yield from _stretches(file, entry.path, wanted)
    if len(faults) == len(entries):
        raise next(iter(faults.values()))
    for entry in entries:
        if entry.path in faults:
            rows = _rows(location, entry, rows_found / max(bytes_seen, 1))
            for start in range(0, rows, _ROWS_PER_PIECE):
                names = [f"{entry.path}:{row}" for row in range(start, min(start + _ROWS_PER_PIECE, rows))]
                yield {"refused": [[name, str(faults[entry.path])] for name in names]}


def _peeker(file: pq.ParquetFile) -> Callable[[str], list[Any]]:
    return lambda name: _peek(file, name)


def _rows(location: Location, entry: Entry, rows_per_byte: float) -> int:
    """Rows of a file; of one that cannot be read, so many as the others have in as many bytes."""
    try:
        return int(_file(location, entry.path).metadata.num_rows)
    except InvalidData:
        return max(1, round(entry.size * rows_per_byte))


def _stretches(file: pq.ParquetFile, name: str, wanted: list[str | None]) -> Iterator[dict[str, Any]]:
    start, groups, count = 0, [], 0
    for group in range(file.num_row_groups):
        groups.append(group)
        count += file.metadata.row_group(group).num_rows
        if count >= _ROWS_PER_PIECE or group == file.num_row_groups - 1:
            yield {"file": name, "groups": groups, "first": start, "columns": wanted}
            start, groups, count = start + count, [], 0


def resolve(schema: Any, columns: Columns, where: str, peek: Callable[[str], list[Any]]) -> tuple[str, str, str | None]:
    """Names of the image, caption and label columns.

    Raises:
        InvalidData: one is missing, of another type, or there twice.
    """
    image = image_column(schema, columns.image, peek, where)
    caption = _caption_column(schema, columns.caption, peek, where, image)
    kind = _plain(schema.field(caption).type)
    text = _plain(kind.value_type) if _is_list(kind) else kind
    if not (is_text(text) or pa.types.is_null(text)):
        raise InvalidData(
            f"column {caption!r} of {where} is {kind}, wanted text or lists of it: set data.caption_column"
        )
    if columns.label is not None:
        return image, caption, column(schema, columns.label, (), "label", where)
    label = next((name for name in LABEL_NAMES if name in schema.names and name not in (image, caption)), None)
    return image, caption, None if label is None else column(schema, label, (), "label", where)


def image_column(schema: Any, wanted: str | None, peek: Callable[[str], list[Any]], where: str) -> str:
    """The wanted column, else a usual name that can hold pictures, else the one whose cells are pictures.

    Raises:
        InvalidData: there is none.
    """
    if wanted is None:
        usual = [name for name in IMAGE_NAMES if name in schema.names]
        others = [name for name in dict.fromkeys(schema.names) if name not in usual]
        for name in [name for name in usual if _can_hold(schema, name)]:
            if not _is_string(schema, name) or _are_pictures(peek(column(schema, name, (), "image", where))):
                return column(schema, name, (), "image", where)
        for name in others:
            if _can_hold(schema, name) and schema.names.count(name) == 1 and _are_pictures(peek(name)):
                return str(name)
        if not usual:
            links = [n for n in others if _is_string(schema, n) and schema.names.count(n) == 1 and _are_links(peek(n))]
            if links:
                raise InvalidData(
                    f"no pictures in {where}, but their addresses in column {links[0]!r}: download them first, for "
                    "example with img2dataset, and set data.path to the folder that it writes"
                )
    name = column(schema, wanted, IMAGE_NAMES, "image", where)
    if not _can_hold(schema, name):
        kind = schema.field(name).type
        raise InvalidData(
            f"column {name!r} of {where} is {kind}, wanted bytes or a struct with bytes: set data.image_column"
        )
    return name


def _can_hold(schema: Any, name: str) -> bool:
    if schema.names.count(name) != 1:
        return True  # `column` refuses it by name
    kind = _plain(schema.field(name).type)
    inside = pa.types.is_struct(kind) and (kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0)
    return is_binary(kind) or is_text(kind) or bool(inside)


def _is_string(schema: Any, name: str) -> bool:
    return schema.names.count(name) == 1 and is_text(_plain(schema.field(name).type))


def _are_pictures(values: list[Any]) -> bool:
    """Whether most cells hold a picture: as bytes, as base64, or as a path."""
    found = [_as_bytes(value) for value in values]
    good = sum(isinstance(data, bytes) and is_picture(data) for data in found)
    paths = sum(isinstance(value, str) and _looks_like_path(value) for value in values)
    nested = sum(isinstance(value, dict) and bool(value.get("path")) for value in values)
    return 2 * max(good, paths, nested) > len(values)


def _looks_like_path(value: str) -> bool:
    return is_image(value) and not value.startswith(_LINKS)


def _are_links(values: list[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) and value.startswith(_LINKS) for value in values)


def _as_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return value.get("bytes")
    if isinstance(value, str):
        return _from_base64(value)
    return value


def _from_base64(text: str) -> bytes | None:
    """The bytes of base64 text, which may be a `data:` URL; None: it is none."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _caption_column(schema: Any, wanted: str | None, peek: Callable[[str], list[Any]], where: str, image: str) -> str:
    if wanted is None and not any(name in schema.names for name in CAPTION_NAMES):
        texts = [n for n in schema.names if n != image and n not in LABEL_NAMES and _is_string(schema, n)]
        wordy = [n for n in texts if _are_words(peek(n))]
        if len(wordy) == 1:
            return str(wordy[0])
    return column(schema, wanted, CAPTION_NAMES, "caption", where)


def _are_words(values: list[Any]) -> bool:
    texts = [value for value in values if isinstance(value, str)]
    return bool(texts) and 2 * sum(" " in text.strip() for text in texts) > len(texts)


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:  # noqa: ARG001
    """The records of some row groups."""
    for item in rows(location, piece):
        if isinstance(item, Record):
            yield item
            continue
        where, row, label = item
        image, caption, _ = piece["columns"]
        yield record_of(location, where, row[image], row[caption], label)


def rows(location: Location, piece: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str | None] | Record]:
    """Where each row is, its values, and its label by name; a refused record for a row that is damaged."""
    name, number = piece["file"], piece["first"]
    wanted = list(dict.fromkeys(column for column in piece["columns"] if column is not None))
    label = piece["columns"][-1]
    try:
        file = _file(location, name)
    except InvalidData as error:
        yield Record(f"{name}:{number}", fault=str(error))
        return
    names = class_names(file.schema_arrow, label)
    every = int(piece.get("every", 1))
    for group in piece["groups"]:
        end = number + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=wanted):
                columns = values_of(batch)
                for row in range(batch.num_rows):
                    if (number - piece["first"]) % every == 0:
                        values = {key: cells[row] for key, cells in columns.items()}
                        found = label_by_name(values[label] if label else None, names)
                        yield f"{name}:{number}", values, found
                    number += 1
        except (pa.ArrowException, OSError) as error:
            fault = f"the file is damaged here ({error}): repair or remove it"
            damaged = thinned((f"{name}:{row}" for row in range(number, end)), piece)
            yield from (Record(where, fault=fault) for where in damaged)
            number = end


def first_rows(location: Location, piece: dict[str, Any], columns: Sequence[str], count: int) -> dict[str, list[Any]]:
    """The first rows of a piece, column by column.

    Raises:
        InvalidData: they cannot be read.
    """
    file = _file(location, piece["file"])
    try:
        for batch in file.iter_batches(count, row_groups=list(piece["groups"]), columns=list(columns)):
            return values_of(batch)
    except (pa.ArrowException, OSError) as error:
        raise InvalidData(f"{piece['file']} is damaged ({error})") from None
    return {name: [] for name in columns}


def values_of(batch: pa.RecordBatch) -> dict[str, list[Any]]:
    """Columns as plain values; Arrow does not look whether texts are UTF-8, Python does."""
    return {name: _cells(batch.column(place)) for place, name in enumerate(batch.schema.names)}


def _cells(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        if is_text(kind):
            binary = pa.binary_view() if pa.types.is_string_view(kind) else pa.large_binary()
            data = [None if cell is None else cell for cell in column.cast(binary).to_pylist()]
            return [None if cell is None else _Guessed(cell) for cell in data]
        if _is_list(kind):
            return [None if not cell.is_valid else _cells(cell.values) for cell in column]
        return [None] * len(column)


class _Guessed(str):
    """A text that is no UTF-8 and was read as Windows-1252."""

    __slots__ = ()

    def __new__(cls, data: bytes) -> _Guessed:
        return super().__new__(cls, read_text(data)[0])


def notes_of(caption: Any) -> tuple[str, ...]:
    """How the texts of a cell had to be read."""
    cells = [caption] if isinstance(caption, str) else caption or []
    return (WINDOWS,) if any(isinstance(cell, _Guessed) for cell in cells) else ()


def record_of(location: Location, where: str, image: Any, caption: Any, label: str | None) -> Record:
    """A record from the cells of a row."""
    try:
        captions = captions_of(caption)
        return Record(where, _picture(location, image), captions, label, notes=notes_of(caption))
    except (OSError, ValueError) as error:
        return Record(where, fault=str(error))


def _picture(location: Location, image: Any) -> bytes:
    data, path = image, None
    if isinstance(image, dict):
        data, path = image.get("bytes"), image.get("path")
    elif isinstance(image, str):
        data = _from_base64(image)
        if data is None or not is_picture(data):
            data, path = None, image
    if data is None and path:
        return location.read_named(str(path))[1]
    return b"" if data is None else bytes(data)


def _file(location: Location, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(location.open(name))
    except (pa.ArrowException, OSError) as error:
        raise InvalidData(f"{name} in {location.url} is no readable Parquet ({error}): repair or remove it") from None


def column(schema: Any, wanted: str | None, usual: Sequence[str], what: str, where: str) -> str:
    """The wanted column, or the first of the usual ones.

    Raises:
        InvalidData: it is not there, or there twice.
    """
    names = usual if wanted is None else (wanted,)
    times = Counter(schema.names)
    for name in names:
        if times[name] > 1:
            raise InvalidData(f"{times[name]} columns of {where} are named {name!r}: rename one")
        if times[name]:
            return name
    raise InvalidData(
        f"no {what} column ({', '.join(names)}) in {where}, which has {keys_found(times)}: set data.{what}_column"
    )


def _plain(kind: Any) -> Any:
    """The type of the values, where they are in a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_list(kind: Any) -> bool:
    return any(getattr(pa.types, test)(kind) for test in _LIST_KINDS)


def is_text(kind: Any) -> bool:
    """Whether cells of this type are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_binary(kind: Any) -> bool:
    """Whether cells of this type are bytes."""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


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


def pieces_fault(location: Location, name: str) -> None:
    """Why a file holds no pictures.

    Raises:
        InvalidData: the reason.
    """
    file = _file(location, name)
    resolve(file.schema_arrow, Columns(), f"{name} in {location.url}", _peeker(file))
