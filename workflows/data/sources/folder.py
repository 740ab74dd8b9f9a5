"""Images with a `metadata.jsonl`: a line `{"file_name": ..., "text": ...}` for each picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Final

from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Columns,
    Record,
    captions_of,
    is_image,
    label_of,
    parsed,
    pick,
)
from workflows.errors import InvalidData

_METADATA: Final = "metadata.jsonl"
_LINES_AT_ONCE: Final = 512
_FILE_NAMES: Final = ("file_name", "file", "path", "image")


def detect(location: Location, entries: list[Entry]) -> bool:  # noqa: ARG001 -- a source's signature
    """Whether there is a `metadata.jsonl`."""
    return any(PurePosixPath(entry.path).name == _METADATA for entry in entries)


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:
    """Stretches of lines, then the pictures that no line names.

    Raises:
        InvalidData: there is no `metadata.jsonl`, or it cannot be read.
    """
    entries = location.entries()
    files = [entry.path for entry in entries if PurePosixPath(entry.path).name == _METADATA]
    if not files:
        raise InvalidData(f"no {_METADATA} in {location.url}: add one, or choose another data.source")
    listed: set[str] = set()
    for file in files:
        yield from _stretches(location, file, columns, listed)
    unlisted = [entry.path for entry in entries if is_image(entry.path) and entry.path not in listed]
    for start in range(0, len(unlisted), _LINES_AT_ONCE):
        yield {"unlisted": unlisted[start : start + _LINES_AT_ONCE]}


def _stretches(location: Location, file: str, columns: Columns, listed: set[str]) -> Iterator[dict[str, Any]]:
    offset, first, number = 0, 0, 0
    folder = PurePosixPath(file).parent
    try:
        lines = location.read(file).splitlines(keepends=True)
    except OSError as error:
        raise InvalidData(f"cannot read {file} in {location.url} ({error})") from None
    for start in range(0, len(lines), _LINES_AT_ONCE):
        part = lines[start : start + _LINES_AT_ONCE]
        number, length = start, sum(map(len, part))
        for line in part:
            if name := _file_name(line, columns):
                listed.add(str(folder / name))
        yield {"file": file, "first": number, "offset": offset, "length": length}
        offset, first = offset + length, first + len(part)


def _file_name(line: bytes, columns: Columns) -> str | None:
    try:
        name = pick(parsed(line), columns.image, _FILE_NAMES)
    except (ValueError, TypeError):
        return None
    return name if isinstance(name, str) else None


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:
    """The records of a stretch of lines."""
    if "unlisted" in piece:
        yield from (Record(name, fault=f"no line in {_METADATA} names it") for name in piece["unlisted"])
        return
    with location.open(piece["file"]) as file:
        file.seek(piece["offset"])
        lines = bytes(file.read(piece["length"])).splitlines()
    for number, line in enumerate(lines, start=piece["first"] + 1):
        if line.strip():
            yield _record(location, f"{piece['file']}:{number}", PurePosixPath(piece["file"]).parent, line, columns)


def _record(location: Location, where: str, folder: PurePosixPath, line: bytes, columns: Columns) -> Record:
    try:
        values = parsed(line)
    except ValueError as error:
        return Record(where, fault=f"the line is not JSON ({error})")
    if not isinstance(values, dict):
        return Record(where, fault=f"the line holds {type(values).__name__}, wanted an object")
    name = pick(values, columns.image, _FILE_NAMES)
    if not isinstance(name, str):
        return Record(where, fault=f"no {columns.image or 'file_name'} in the line (keys: {', '.join(values)[:200]})")
    path = str(folder / name)
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return Record(path, fault="the file lies outside the folder")
    try:
        captions = captions_of(pick(values, columns.caption, CAPTION_NAMES))
        image = location.read(path)
    except (OSError, ValueError) as error:
        return Record(path, fault=_reason(error))
    return Record(path, image, captions, label_of(pick(values, columns.label, LABEL_NAMES)))


def _reason(error: Exception) -> str:
    return "the file does not exist" if isinstance(error, FileNotFoundError) else str(error)
