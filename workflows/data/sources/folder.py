"""Pictures that a file beside them names: `metadata.jsonl`, `.json`, `.csv` or `.tsv`, an entry for each caption.

Entries that name one picture become one record, with all of their captions. To find them, the driver holds 32 bytes
for each entry, and for an entry that shares its picture 70 bytes more.
"""

from __future__ import annotations

import csv
import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from workflows.data.sources.listing import STEMS, SUFFIXES, Listing, is_listing
from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Columns,
    Record,
    canonical,
    captions_of,
    is_image,
    keys_found,
    label_of,
    pick,
    thinned,
)
from workflows.errors import InvalidData

_AT_ONCE: Final = 512
_FILE_NAMES: Final = ("file_name", "file", "filename", "path", "filepath", "image_path", "image", "image_file")
_COUNTED: Final = 1 << 20


def sees(location: Location, entries: list[Entry]) -> int:
    """About how many captioned pictures there are: entries of the files that name pictures, up to a million."""
    return sum(_num_entries(location, file) for file in _listings(location, entries))


def _num_entries(location: Location, file: str) -> int:
    """Entries with a file name, judged by the first of them; none where it has none."""
    count = 0
    try:
        listing = Listing(location, file)
        for count, span in enumerate(listing.spans(), start=1):
            if count == 1 and not _could_name(listing, span):
                return 0
            if count >= _COUNTED:
                break
    except OSError:
        return 1
    return count


def _could_name(listing: Listing, span: tuple[int, int]) -> bool:
    """Whether an entry names a picture, or is so broken that nobody knows; other JSON files name none."""
    if PurePosixPath(listing.file).stem.lower() == "metadata":
        return True
    try:
        name = pick(listing.values(listing.read(span))[0], None, _FILE_NAMES)
    except (ValueError, csv.Error):
        return False
    return isinstance(name, str)


def _listings(location: Location, entries: list[Entry]) -> list[str]:
    if location.table is not None:
        return [location.table]
    return [entry.path for entry in entries if is_listing(entry.path)]


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:
    """Stretches of entries, then the pictures that no entry names.

    Raises:
        InvalidData: no file names pictures, or it cannot be read.
    """
    entries = location.entries()
    files = [file for file in _listings(location, entries) if _num_entries(location, file)]
    if not files:
        names = ", ".join(f"{STEMS[0]}{suffix}" for suffix in SUFFIXES)
        raise InvalidData(f"no {names} with entries in {location.url}: add one, or choose another data.source")
    images = [entry.path for entry in entries if is_image(entry.path)]
    index = _Index(images, columns, location)
    for number, file in enumerate(files):
        try:
            index.add(number, Listing(location, file))
        except OSError as error:
            raise InvalidData(f"cannot read {file} in {location.url} ({error})") from None
    yield from index.pieces(files)
    unlisted = index.unlisted() if location.table is None else []
    for start in range(0, len(unlisted), _AT_ONCE):
        yield {"unlisted": unlisted[start : start + _AT_ONCE]}


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")


class _Index:
    """Which picture every entry names: 8 bytes each for the picture, the file, and the entry's start and end."""

    def __init__(self, images: list[str], columns: Columns, location: Location) -> None:
        self._images, self._columns, self._location = images, columns, location
        self._known = np.sort(np.fromiter((_hash(canonical(path)) for path in images), np.uint64, len(images)))
        self._pictures, self._files = array("Q"), array("q")
        self._starts, self._ends = array("q"), array("q")
        self._missing: set[int] = set()

    def add(self, number: int, listing: Listing) -> None:
        folder = str(PurePosixPath(listing.file).parent)
        for start, end in listing.spans():
            entry = listing.read_entry((start, end))
            if not entry.strip():
                continue
            path = self._path(listing, entry, "" if folder == "." else folder)
            key = _hash(f"{number} {start}") if path is None else _hash(canonical(path))
            for column, value in (
                (self._pictures, key), (self._files, number), (self._starts, start), (self._ends, end)
            ):  # fmt: skip
                column.append(value)

    def _path(self, listing: Listing, entry: bytes, folder: str) -> str | None:
        try:
            name = pick(listing.values(entry)[0], self._columns.image, _FILE_NAMES)
            if not isinstance(name, str):
                return None
            path = self._location.inside(name, folder)
        except (ValueError, csv.Error):
            return None
        for spelled in self._location.spellings(path):
            if self._is_known(spelled):
                return spelled
        self._missing.add(_hash(PurePosixPath(canonical(path)).name))
        return path

    def _is_known(self, path: str) -> bool:
        key = np.uint64(_hash(canonical(path)))
        place = int(np.searchsorted(self._known, key))
        return place < len(self._known) and bool(self._known[place] == key)

    def unlisted(self) -> list[str]:
        """Pictures that no entry names; one whose name stands in a wrong path is counted with that entry."""
        named = np.unique(np.frombuffer(self._pictures, np.uint64)) if self._pictures else np.empty(0, np.uint64)
        found = []
        for path in self._images:
            key = np.uint64(_hash(canonical(path)))
            place = int(np.searchsorted(named, key))
            if place < len(named) and named[place] == key:
                continue
            if _hash(PurePosixPath(canonical(path)).name) not in self._missing:
                found.append(path)
        return found

    def pieces(self, files: list[str]) -> Iterator[dict[str, Any]]:
        count = len(self._pictures)
        if not count:
            return
        rows = np.stack([np.frombuffer(column, np.int64) for column in (self._files, self._starts, self._ends)], 1)
        _, leaders, group = np.unique(np.frombuffer(self._pictures, np.uint64), return_index=True, return_inverse=True)
        leader = leaders[group]
        followers = np.flatnonzero(leader != np.arange(count))
        by_leader = followers[np.argsort(leader[followers], kind="stable")]
        places = leader[by_leader]
        for first in _firsts(rows[:, 0]):
            last = min(first + _AT_ONCE, count, int(np.searchsorted(rows[:, 0], rows[first, 0], side="right")))
            piece: dict[str, Any] = {"file": files[int(rows[first, 0])]}
            piece |= {"start": int(rows[first, 1]), "end": int(rows[last - 1, 2])}
            piece["first"] = first - int(np.searchsorted(rows[:, 0], rows[first, 0]))
            skipped = np.flatnonzero(leader[first:last] != np.arange(first, last))
            if len(skipped):
                piece["skip"] = skipped.astype("<u2").tobytes().hex()
            low, high = np.searchsorted(places, [first, last])
            if high > low:
                chosen = by_leader[low:high]
                more = np.column_stack([places[low:high] - first, rows[chosen]])
                piece["more"] = more.astype("<i8").tobytes().hex()
                piece["files"] = [files[number] for number in sorted(set(rows[chosen, 0].tolist()))]
                piece["numbers"] = sorted(set(rows[chosen, 0].tolist()))
            yield piece


def _firsts(files: NDArray[np.int64]) -> Iterator[int]:
    """Where stretches start: every 512 entries of a file."""
    bounds = [0, *(np.flatnonzero(np.diff(files)) + 1).tolist(), len(files)]
    for start, end in pairwise(bounds):
        yield from range(start, end, _AT_ONCE)


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:
    """The records of a stretch of entries; entries of the same picture that stand elsewhere are read with it."""
    if "unlisted" in piece:
        fault = "no line in metadata names it"
        yield from (Record(name, fault=fault) for name in thinned(piece["unlisted"], piece))
        return
    listing = Listing(location, piece["file"])
    skipped = set(np.frombuffer(bytes.fromhex(piece.get("skip", "")), "<u2").tolist())
    more = _more(location, piece)
    entries = (entry for entry in listing.entries(listing.read((piece["start"], piece["end"]))) if entry.strip())
    numbered = [(number, entry) for number, entry in enumerate(entries) if number not in skipped]
    for number, entry in thinned(numbered, piece):
        where = f"{piece['file']}:{piece['first'] + number + 1}"
        yield _record(location, where, [(listing, entry), *more.get(number, ())], columns)


def _more(location: Location, piece: Mapping[str, Any]) -> dict[int, list[tuple[Listing, bytes]]]:
    found: dict[int, list[tuple[Listing, bytes]]] = {}
    rows = np.frombuffer(bytes.fromhex(piece.get("more", "")), "<i8").reshape(-1, 4)
    named = dict(zip(piece.get("numbers", ()), piece.get("files", ()), strict=True))
    listings = {number: Listing(location, file) for number, file in named.items()}
    for number, file, start, end in rows.tolist():
        found.setdefault(number, []).append((listings[file], listings[file].read_entry((start, end))))
    return found


def _record(location: Location, where: str, entries: list[tuple[Listing, bytes]], columns: Columns) -> Record:
    """The record of entries that name one picture; an entry without a good caption does no harm to the others."""
    captions: list[str] = []
    notes: dict[str, None] = {}
    labels: list[str | None] = []
    try:
        name = _name_of(*entries[0], columns)
    except ValueError as error:
        return Record(where, fault=str(error))
    for listing, entry in entries:
        values, found = listing.values(entry)
        notes |= dict.fromkeys(found)
        labels.append(label_of(pick(values, columns.label, LABEL_NAMES)))
        try:
            captions += captions_of(pick(values, columns.caption, CAPTION_NAMES))
        except ValueError as error:
            if len(entries) == 1:
                return Record(name, fault=str(error))
            notes[f"a line about it left aside: {error}"] = None
    if not captions:
        return Record(name, fault=f"no caption (keys: {keys_found(values)})")
    folder = str(PurePosixPath(entries[0][0].file).parent)
    try:
        path, image = location.read_named(name, "" if folder == "." else folder)
    except ValueError as error:
        return Record(name, fault=str(error))
    label = next((label for label in labels if label is not None), None)
    return Record(path, image, tuple(captions), label, notes=tuple(notes))


def _name_of(listing: Listing, entry: bytes, columns: Columns) -> str:
    try:
        values, _ = listing.values(entry)
    except ValueError as error:
        raise ValueError(str(error) if "wanted" in str(error) else f"the line is not JSON ({error})") from None
    except csv.Error as error:
        raise ValueError(f"the line is no CSV ({error})") from None
    name = pick(values, columns.image, _FILE_NAMES)
    if not isinstance(name, str):
        raise ValueError(  # noqa: TRY004 -- one kind for all faults of data
            f"no {columns.image or 'file_name'} in the line (keys: {keys_found(values)})"
        )
    return name
