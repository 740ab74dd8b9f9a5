"""Pictures in folders that name them, such as `cat/1.png`: the folder is the label, a template makes the caption."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from workflows.data.sources.location import Entry, Location
from workflows.data.sources.record import Columns, Record, class_of, is_image, thinned
from workflows.errors import InvalidData

_FILES_AT_ONCE: Final = 512


def sees(location: Location, entries: list[Entry]) -> int:  # noqa: ARG001 -- a source's signature
    """How many pictures lie in a folder below the location."""
    return sum(is_image(entry.path) and class_of(entry.path) is not None for entry in entries)


def pieces(location: Location, columns: Columns) -> Iterable[dict[str, Any]]:  # noqa: ARG001
    """Stretches of pictures in order of paths.

    Raises:
        InvalidData: there is no picture.
    """
    images = [entry.path for entry in location.entries() if is_image(entry.path)]
    if not images:
        raise InvalidData(f"no images in {location.url}: set data.path to a folder of folders of them")
    for start in range(0, len(images), _FILES_AT_ONCE):
        yield {"files": images[start : start + _FILES_AT_ONCE]}


def read(location: Location, piece: dict[str, Any], columns: Columns) -> Iterator[Record]:
    """The records of a stretch of pictures."""
    for path in thinned(piece["files"], piece):
        name = class_of(path)
        if name is None:
            yield Record(path, fault="it lies in no folder that names it")
            continue
        try:
            yield Record(path, location.read(path), (columns.template.format(label=name),), name)
        except OSError as error:
            yield Record(path, fault=f"the file cannot be read ({error.strerror or error})")
