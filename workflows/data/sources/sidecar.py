"""Images with a `.txt` of the same name beside them, one caption a line; a `.cls` may give the class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, Final

from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import Columns, Record, decoded, is_image, label_of
from workflows.errors import InvalidData

_FILES_AT_ONCE: Final = 512


def detect(location: Location, entries: list[Entry]) -> bool:  # noqa: ARG001 -- a source's signature
    """Whether a picture has its text beside it."""
    texts = {_stem(entry.path) for entry in entries if entry.path.endswith(".txt")}
    return any(is_image(entry.path) and _stem(entry.path) in texts for entry in entries)


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:  # noqa: ARG001
    """Stretches of pictures in order of paths, then the texts that have none.

    Raises:
        InvalidData: there is no picture.
    """
    paths = [entry.path for entry in location.entries()]
    known = set(paths)
    images = [path for path in paths if is_image(path)]
    if not images:
        raise InvalidData(f"no images in {location.url}: set data.path to a folder of them")
    stems = {_stem(path) for path in images}
    alone = [path for path in paths if path.endswith(".txt") and _stem(path) not in stems]
    for start in range(0, len(images), _FILES_AT_ONCE):
        part = images[start : start + _FILES_AT_ONCE]
        files = [[path, *(_beside(path, suffix, known) for suffix in (".txt", ".cls"))] for path in part]
        yield {"files": files}
    if alone:
        yield {"alone": alone}


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:  # noqa: ARG001
    """The records of a stretch of pictures."""
    yield from (Record(path, fault="there is no image of this name") for path in piece.get("alone") or ())
    for path, text, label in piece.get("files") or ():
        if text is None:
            yield Record(path, fault="no .txt of this name beside it")
            continue
        try:
            lines = tuple(decoded(location.read(text)).splitlines())
            found = label_of(decoded(location.read(label)).strip()) if label else None
            yield Record(path, location.read(path), lines, found)
        except OSError as error:
            yield Record(path, fault=str(error))


def _beside(path: str, suffix: str, known: set[str]) -> str | None:
    other = f"{_stem(path)}{suffix}"
    return other if other in known else None


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))
