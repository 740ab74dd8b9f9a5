"""Files that name pictures: JSON lines, a JSON array or object, CSV or TSV, cut into entries without parsing them all.

`spans` says where each entry starts and ends, so that a worker reads a stretch of entries by its offset. It holds one
entry and a buffer of a megabyte.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Final

from workflows.data.sources.location import Location
from workflows.data.sources.record import parsed, read_text

SUFFIXES: Final = (".jsonl", ".json", ".csv", ".tsv")
STEMS: Final = ("metadata", "captions", "meta_cap", "annotations")
"""Names without their end, under which a file that names pictures is looked for."""
_BUFFER: Final = 1 << 20
_TOKENS: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[\]{},]', re.DOTALL)
_WIDE_MARKS: Final = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")

Span = tuple[int, int]


def is_listing(path: str) -> bool:
    """Whether a file's name says that it names pictures."""
    place = PurePosixPath(path.lower())
    return place.suffix in SUFFIXES and place.stem in STEMS


class Listing:
    """A file that names pictures.

    Attributes:
        file: its path in the location.
        kind: `lines`, `array`, `object` or `table`.
        header: the first line of a table.
        first: the offset of the first entry.
    """

    def __init__(self, location: Location, file: str) -> None:
        self._location, self.file = location, file
        self.kind, self.header, self.first = "lines", b"", 0
        self._kept: Any = None
        with self._open() as raw:
            start = raw.read(4096)
            mark = 3 if start.startswith(b"\xef\xbb\xbf") else 0
            body = start[mark:].lstrip()
            self.first = len(start) - len(body)
            if file.lower().endswith((".csv", ".tsv")):
                self.kind = "table"
                raw.seek(mark)
                self.header, self.first = _first_line(raw, mark)
            elif body.startswith(b"["):
                self.kind, self.first = "array", self.first + 1
            elif body.startswith(b"{") and not file.lower().endswith(".jsonl") and not _is_line(body):
                self.kind, self.first = "object", self.first + 1

    def _open(self) -> Any:
        raw = self._location.open(self.file)
        if not raw.read(4).startswith(_WIDE_MARKS):
            raw.seek(0)
            return raw
        # Text of two or four bytes a character has no line ends that bytes could show: it is made UTF-8 in memory.
        with raw:
            raw.seek(0)
            return io.BytesIO(read_text(bytes(raw.read()))[0].encode("utf-8", "replace"))

    def spans(self) -> Iterator[Span]:
        """Start and end of every entry, in order."""
        with self._open() as raw:
            raw.seek(self.first)
            if self.kind in ("array", "object"):
                yield from _members(raw, self.first)
            else:
                yield from _lines(raw, self.first, quoted=self.kind == "table")

    def read(self, span: Span) -> bytes:
        """The bytes of a stretch."""
        with self._open() as raw:
            raw.seek(span[0])
            return bytes(raw.read(span[1] - span[0]))

    def read_entry(self, span: Span) -> bytes:
        """The bytes of one entry; the file stays open for the next."""
        if self._kept is None:
            self._kept = self._open()
        self._kept.seek(span[0])
        return bytes(self._kept.read(span[1] - span[0]))

    def entries(self, data: bytes) -> Iterator[bytes]:
        """The entries of a stretch that `read` gave."""
        raw = io.BytesIO(data)
        spans = _members(raw, 0) if self.kind in ("array", "object") else _lines(raw, 0, quoted=self.kind == "table")
        return (data[start:end] for start, end in list(spans))

    def values(self, entry: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Names and values of an entry, and how its text had to be read.

        Raises:
            ValueError: it cannot be parsed, or is no object.
        """
        if self.kind == "table":
            return self._row(entry)
        wrapped = b"{" + entry + b"}" if self.kind == "object" else entry.strip()
        values, notes = parsed(wrapped)
        if self.kind == "object" and isinstance(values, dict) and len(values) == 1:
            [(name, value)] = values.items()
            values = {"file_name": name} | (value if isinstance(value, dict) else {"caption": value})
        if not isinstance(values, dict):
            raise ValueError(  # noqa: TRY004 -- one kind for all faults of data
                f"the line holds {type(values).__name__}, wanted an object"
            )
        return values, notes

    def _row(self, entry: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
        header, _ = read_text(self.header)
        text, notes = read_text(entry)
        comma = "\t" if self.file.lower().endswith(".tsv") else max(",;\t", key=header.count)
        names, *_ = [*csv.reader([header], delimiter=comma), []]
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=comma))
        cells = rows[0] if rows else []
        if len(cells) > len(names):
            raise ValueError(f"{len(cells)} cells under {len(names)} names: put texts with commas in quotes")
        named = {name.strip(): cell or None for name, cell in zip(names, cells, strict=False)}
        return named, notes


def _is_line(body: bytes) -> bool:
    """Whether the first line of a text is a whole JSON object, and so the others are too."""
    first, end, _ = body.partition(b"\n")
    try:
        return isinstance(json.loads(first), dict) and (bool(end) or b"file_name" in first)
    except (ValueError, RecursionError):
        return False


def _first_line(raw: Any, start: int) -> tuple[bytes, int]:
    for first, last in _lines(raw, start, quoted=True):
        raw.seek(first)
        return bytes(raw.read(last - first)).strip(), last
    return b"", start


def _lines(raw: Any, start: int, *, quoted: bool) -> Iterator[Span]:
    """Lines with their ends; in a table, a line break between quotes ends no line."""
    first, quotes, place = start, 0, start
    rest = b""
    while chunk := bytes(raw.read(_BUFFER)):
        for line in _split(rest + chunk):
            if not line.endswith(b"\n"):
                rest = line
                break
            place += len(line)
            quotes += line.count(b'"')
            if not quoted or quotes % 2 == 0:
                yield first, place
                first, quotes = place, 0
        else:
            rest = b""
    if place + len(rest) > first:
        yield first, place + len(rest)


def _split(data: bytes) -> list[bytes]:
    *lines, rest = data.split(b"\n")
    return [*(line + b"\n" for line in lines), rest]


def _members(raw: Any, start: int) -> Iterator[Span]:
    """Members of a JSON array or object: what lies between the commas at its own depth."""
    buffer, base, depth, first, place = b"", start, 0, start, 0
    ended = False
    while not ended:
        chunk = bytes(raw.read(_BUFFER))
        ended = not chunk
        buffer += chunk
        for token in _TOKENS.finditer(buffer, place):
            if not ended and token.end() >= len(buffer) - 1:
                break  # a string may go on in the next chunk
            byte = token[0]
            place = token.end()
            if byte in (b"{", b"["):
                depth += 1
            elif byte in (b"}", b"]"):
                depth -= 1
                if depth < 0:
                    yield from _member(buffer, base, first, base + token.start())
                    return
            elif byte == b"," and depth == 0:
                yield from _member(buffer, base, first, base + token.start())
                first = base + token.end()
        cut = min(first - base, place)
        buffer, base, place = buffer[cut:], base + cut, place - cut
    yield from _member(buffer, base, first, base + len(buffer))


def _member(buffer: bytes, base: int, first: int, last: int) -> Iterator[Span]:
    if buffer[first - base : last - base].strip():
        yield first, last
